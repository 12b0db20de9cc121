"""No secret of a run is in what the relay says or writes: log lines at all levels, metrics, answers, files."""

import asyncio
import base64
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import run
from harness import Phone, RelayProcess, environment
from redis_servers import free_port

from ntf_server.testing import MockApns
from ntf_server.testing.faults import Answer
from smp_bridge import crypto, ntf
from smp_bridge.client import Client, ServerError
from smp_bridge.encoding import b64url
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient

KEYS = ("master.key", "server.key", "ca.key", "vapid.key")


def forms(secret: bytes) -> Iterator[tuple[str, bytes]]:
    """How it may be written: as it is, in hex, in base64, as Python shows it."""
    yield "raw", secret
    yield "hex", secret.hex().encode()
    yield "HEX", secret.hex().upper().encode()
    for name, encode in (("base64", base64.b64encode), ("base64url", base64.urlsafe_b64encode)):
        yield name, encode(secret).rstrip(b"=")[: len(secret) * 4 // 3 - 1]
    yield "repr", repr(secret)[2:-1].encode()


def shown(secrets: dict[str, bytes], said: dict[str, bytes]) -> list[str]:
    """Which secret is where, and how."""
    return [
        f"{what} as {form} in {where}"
        for what, secret in secrets.items()
        for form, text in forms(secret)
        for where, everything in said.items()
        if text in everything
    ]


def test_what_is_written_in_any_form_is_found() -> None:
    secret = bytes(range(120, 152))
    for form, text in forms(secret):
        assert shown({"it": secret}, {"there": b"a line " + text + b" of text"})[0].startswith("it as "), form
    assert shown({"it": secret}, {"there": b"a line"}) == []


async def told(
    directory: Path, token_id: str, subscription_id: str, device_token: str, *, whole: bool, **settings: str
) -> dict[str, bytes]:
    """What operators may ask a relay that runs, or the first of it, and what that says."""
    at = f"--path={directory}"
    asked = [("status", at), ("check", at), ("stats", at), ("tokens", "list", at, "--json")]
    asked += [("tokens", "show", at, "--", token_id), ("subs", "show", at, "--", subscription_id)]
    asked += [("subs", "check", at, "--json"), ("servers", "list", at, "--json"), ("servers", "show", at, "localhost")]
    asked += [("doctor", at), ("backup", at, str(directory.parent / "backup"))]
    asked = asked if whole else asked[:2]
    done = await asyncio.gather(*(asyncio.to_thread(run, *words, **settings) for words in asked))
    if whole:
        words = ["push-test", at, "--provider=apns-test", "--token=-", "--second-opinion"]
        asked.append(("push-test",))
        done.append(await asyncio.to_thread(run, *words, stdin=device_token, **settings))
        assert done[-1].returncode == 0, done[-1].stdout
    said = {" ".join(asking[:2]): (d.stdout + d.stderr).encode() for asking, d in zip(asked, done, strict=True)}
    found = {"subs show": b"localhost", "servers list": b"localhost", "tokens show": b"AT "} if whole else {}
    assert all(text in said[name] for name, text in found.items())
    return said


def live_page(folder: Path) -> tuple[bytes, dict[str, str], urllib.request.Request]:
    """Its token, its settings, and what it is asked."""
    token, port = b64url(os.urandom(24)), free_port()
    (folder / "page.token").write_text(token)
    settings = {"NTF_SERVER__ADMIN__PORT": str(port), "NTF_SERVER__ADMIN__TOKEN_FILE": str(folder / "page.token")}
    headers = {"Authorization": f"Bearer {token}"}
    return token.encode(), settings, urllib.request.Request(f"http://127.0.0.1:{port}/api/state", headers=headers)


def shown_pages(port: int, page: urllib.request.Request) -> dict[str, bytes]:
    """What may be read over HTTP."""
    asked = {name: urllib.request.Request(f"http://127.0.0.1:{port}/{name}") for name in ("metrics", "health")}
    said: dict[str, bytes] = {}
    for name, request in {**asked, "page": page}.items():
        with urllib.request.urlopen(request) as answer:
            said[name] = answer.read()
    return said


@pytest.mark.parametrize("form", ["text", "json"])
async def test_no_secret_is_told(tmp_path: Path, smp_server: SmpServer, form: str) -> None:
    """Also when pushes are refused, when commands are wrong, when names and ids are not known."""
    secrets: dict[str, bytes] = {}
    async with MockApns() as apns:
        port = free_port()
        secrets["page's token"], with_page, page = live_page(tmp_path)
        settings = {
            **with_page,
            **environment(apns),
            "NTF_SERVER__LOG__LEVEL": "debug",
            "NTF_SERVER__LOG__FORMAT": form,
            "NTF_SERVER__METRICS__PORT": str(port),
            "NTF_SERVER__DELIVERY__MIN_BACKOFF": "0.1",
            "NTF_SERVER__DELIVERY__MAX_BACKOFF": "0.2",
        }
        relay = RelayProcess(tmp_path / "relay", settings, log=tmp_path / "log")
        await relay.init()
        await relay.start()
        said: dict[str, bytes] = {}
        async with await Client.connect(relay.address) as client, await Recipient.connect(smp_server.address) as r:
            phones = [Phone(apns), Phone(apns)]
            for n, phone in enumerate(phones):
                await phone.register(client)
                code = phone.open(push := await apns.next(phone.token), "verification")
                assert push.token == phone.token
                with pytest.raises(ServerError, match="AUTH"):
                    await client.request(ntf.TVfy(bytes(32)), phone.token_id, phone.key)
                assert await client.request(ntf.TVfy(code), phone.token_id, phone.key) == ntf.Ok()
                queue = await r.queue()
                subscription = await phone.subscribe(client, smp_server.address, queue)
                await smp_server.until(lambda q=queue: smp_server.subscribed(q.notifier_id))  # type: ignore[misc]
                secrets |= {
                    f"device token {n}": phone.token.encode(),
                    f"bytes of device token {n}": bytes.fromhex(phone.token),
                    f"code {n}": code,
                    f"DH secret {n}": phone.secret,
                    f"box key {n}": crypto.box_key(phone.secret),
                    f"notifier key {n}": queue.notifier_key.private_bytes_raw(),
                    f"notifier id {n}": queue.notifier_id,
                    f"subscription id {n}": subscription,
                }
                apns.script(Answer(503, "ServiceUnavailable"), Answer(400, "BadTopic"))
                smp_server.notify(queue.notifier_id)
                await apns.next(phone.token)
                what = b64url(phone.token_id)
                traced = await asyncio.to_thread(run, "trace", "--path", relay.directory, "--", what)
                assert traced.returncode == 0, traced.stderr
                said[f"trace {n}"] = (traced.stdout + traced.stderr).encode()
            apns.unregister(phones[1].token)
            smp_server.notify(queue.notifier_id)
            async with asyncio.timeout(20):
                while (await phones[1].status(client)).status is ntf.TokenStatus.ACTIVE:
                    await asyncio.sleep(0.05)
        ids = b64url(phones[0].token_id), b64url(subscription)
        said |= await told(relay.directory, *ids, phones[0].token, whole=form == "text", **settings)
        said |= await asyncio.to_thread(shown_pages, port, page)
        assert await relay.stop() == 0
    for name in KEYS:
        key = (relay.directory / name).read_bytes()
        secrets[name] = key.strip() if name == "master.key" else b"".join(key.splitlines()[1:-1])
    files = {p.name: p.read_bytes() for p in relay.directory.iterdir() if p.is_file() and p.name not in KEYS}
    files |= {p.name: p.read_bytes() for p in tmp_path.glob("backup")}
    log = (tmp_path / "log").read_bytes()
    assert ("backup" in files) is ("push-test" in said) is (form == "text")
    assert log.count(b"push.ended") > 6 and "ntf-server.db" in files and b"ntf_" in said["metrics"]
    assert b"relay.started" in said["page"]
    assert shown(secrets, said | {"log": log}) == []
    found_by = ("notifier id", "subscription id")  # which are not sealed, as they are searched for
    sealed = {name: secret for name, secret in secrets.items() if not name.startswith(found_by)}
    assert shown(sealed, files) == []
