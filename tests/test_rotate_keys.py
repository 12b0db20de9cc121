"""docs/how-to/rotate-keys.md: each command of it is run against a relay that runs, and says what the page says."""

import asyncio
import contextlib
import io
import json
import re
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from certificates import client_certificate

from ntf_server.app import Relay
from ntf_server.cli import main as cli
from ntf_server.config.edit import edited
from ntf_server.config.files import CONFIG_FILE, load
from ntf_server.config.identity_files import create_identity, write_file
from ntf_server.config.reload import _STORE_FILES
from ntf_server.push.jose import generate_key, key_pem
from ntf_server.store.sealing import generate_key_text
from ntf_server.testing import MockFcm

PAGE = (Path(__file__).parents[1] / "docs/how-to/rotate-keys.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
FOLDER = "/etc/opt/simplex-notifications"


def blocks(section: str, language: str) -> list[str]:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.DOTALL)
    return found


def commands(section: str) -> Iterator[tuple[list[str], list[str]]]:
    """(its words behind `ntf-server`, lines that it prints) of each."""
    for block in blocks(section, "console"):
        for command in block.split("$ ntf-server ")[1:]:
            line, *printed = command.splitlines()
            yield line.split(), printed


def pattern(line: str) -> str:
    """`…` stands for anything, a number for any."""
    return re.sub(r"\d+", r"\\d+", re.escape(line).replace("…", ".*"))


class Folder:
    """That of a relay with all providers; pushes go nowhere, since there are none."""

    def __init__(self, path: Path, fcm: MockFcm) -> None:
        self.path = path
        self.fcm = fcm
        self.file = path / CONFIG_FILE
        create_identity(path, "ED25519", "localhost")
        write_file(path / "master.key", generate_key_text().encode())
        write_file(path / "vapid.key", key_pem(generate_key()))
        for name in ("AuthKey_OLDKEY2345.p8", "AuthKey_NEWKEY2345.p8"):
            write_file(path / name, key_pem(generate_key()))
        fcm.service_account(path / "account.json")
        self.file.write_text(
            f"""
            [transport]
            port = 0
            bind = "127.0.0.1"
            [apns]
            key_file = "AuthKey_OLDKEY2345.p8"
            key_id = "OLDKEY2345"
            team_id = "5NN7GUYB6T"
            [fcm]
            service_account_file = "account.json"
            host = "127.0.0.1"
            port = {fcm.port}
            ca_file = "{fcm.ca_file}"
            [web_push]
            key_file = "vapid.key"
            contact = "mailto:push@example.org"
            [store]
            """
        )

    def set(self, toml: str) -> None:
        """As the page has it."""
        for section, values in tomllib.loads(toml).items():
            self.file.write_text(edited(self.file.read_text(), section, values))

    def with_certificate(self) -> None:
        text = re.sub(r" *(key_file = \"AuthKey|key_id|team_id).*\n", "", self.file.read_text())
        self.file.write_text(text)
        client_certificate(self.path, days=20)
        self.set('[apns]\ncertificate_file = "push.pem"\ncertificate_key_file = "push.key"\n')

    async def run(self, *words: str) -> tuple[int, str]:
        return await asyncio.to_thread(self._run, *words)

    def _run(self, *words: str) -> tuple[int, str]:
        out = io.StringIO()
        arguments = [word.replace("/media/usb/", f"{self.path}/usb/") for word in words]
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as end:
            cli.main([*arguments, "--path", str(self.path)])
        assert isinstance(end.value.code, int)
        return end.value.code, out.getvalue()

    async def follow(self, section: str) -> None:
        """Each command does what the page says."""
        for words, printed in commands(section):
            code, out = await self.run(*words)
            assert code == 0, (words, out)
            said = out.replace(str(self.path), FOLDER).splitlines()
            for line in printed:
                assert [there for there in said if re.fullmatch(pattern(line), there)] or line == "…", (line, out)


@pytest.fixture
async def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Folder]:
    monkeypatch.chdir(tmp_path)
    async with MockFcm() as fcm:
        yield Folder(tmp_path, fcm)


async def test_every_key_of_a_relay_is_rotated_while_it_runs(
    folder: Folder, until: Callable[..., asyncio.Future[None]]
) -> None:
    async with Relay(load(folder.path, {})) as relay:
        code, out = await folder.run("reload")
        assert (code, out) == (0, "Nothing differs.\n")

        (folder.path / "usb").mkdir()
        (folder.path / "ca.key").rename(folder.path / "usb" / "ca.key")
        await folder.follow("Online certificate")

        folder.set(*blocks("APNs key", "toml"))
        await folder.follow("APNs key")

        account = json.loads((folder.path / "account.json").read_text())
        (folder.path / "account.json").write_text(json.dumps(account | {"private_key_id": "another"}))
        await folder.follow("Service account of FCM")

        rotate, reload_it, *_, status = commands("VAPID")
        assert status[0] == ["status"]
        for words, _ in (rotate, reload_it):
            assert (await folder.run(*words))[0] == 0

        async def counted() -> bool:
            return relay.condition().vapid is not None

        await until(counted)
        code, out = await folder.run("status")
        assert re.search(pattern(status[1][-1]), out), out
        texts = folder.file.read_text(), *blocks("VAPID", "toml")
        written, shown = (tomllib.loads(text)["web_push"] for text in texts)
        assert written["old_key_files"] == shown["old_key_files"]
        assert re.fullmatch(pattern(shown["key_file"]), written["key_file"])

        await folder.follow("Master key")
        assert (folder.path / "master.key").exists()
        code, out = await folder.run("reload")
        assert (code, out) == (0, "Nothing differs.\n")
    async with Relay(load(folder.path, {})):  # all that is there opens a store, and belongs together
        pass


async def test_vapid_says_what_the_page_says(folder: Folder) -> None:
    async with Relay(load(folder.path, {})):
        for words, printed in list(commands("VAPID"))[:2]:
            code, out = await folder.run(*words)
            assert code == 0
            said = out.replace(str(folder.path), FOLDER).splitlines()
            pairs = [*zip(printed, said, strict=True)]
            assert [line for line, there in pairs if not re.fullmatch(pattern(line), there)] == [], out


async def test_the_client_certificate_for_apns(folder: Folder) -> None:
    folder.with_certificate()
    async with Relay(load(folder.path, {})) as relay:
        assert relay.condition().warnings
        client_certificate(folder.path, days=200)
        await folder.follow("APNs certificate")
        assert not relay.condition().warnings


def test_files_of_a_redis_are_named_as_they_are() -> None:
    """test_swaps.py reloads them."""
    [(words, printed)] = commands("TLS files of Redis")
    assert (words, printed) == (["reload"], [f"in use now      {_STORE_FILES}"])
