"""`ntf-server demo`, run as users run it: its story holds with each push service, and it fails when it does not."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

WHO = {"apns": "Apple", "fcm": "Google", "webpush": "Push service"}
ROOT = Path(__file__).parents[2]
TIMEOUT = 60
REAL = {"NTF_SERVER__STORE__URL": "postgres://real", "NTF_SERVER__APNS__PROXY": "http://real"}

Start = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a short name: there are sockets in it."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture
async def start(tmp_path: Path, temporary: Path) -> AsyncIterator[Start]:
    """Starts demos in a shell that has settings of a real server; stops what a test leaves."""
    processes: list[asyncio.subprocess.Process] = []

    async def demo(*argv: str, stdin: int = asyncio.subprocess.DEVNULL) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ntf_server", "demo", *argv),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), **REAL},
            cwd=tmp_path,
        )
        processes.append(process)
        return process

    yield demo
    for process in processes:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)  # it takes its relay along
        await asyncio.wait_for(process.communicate(), TIMEOUT)


async def finish(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    out, err = await asyncio.wait_for(process.communicate(), TIMEOUT)
    return process.returncode, out.decode(), err.decode()


async def until(process: asyncio.subprocess.Process, text: str) -> str:
    """The output up to a line with this text."""
    assert process.stdout is not None
    lines = []
    async with asyncio.timeout(TIMEOUT):
        while line := (await process.stdout.readline()).decode():
            lines.append(line)
            if text in line:
                return "".join(lines)
    raise AssertionError("".join(lines))


def is_empty(directory: Path) -> bool:
    return not any(directory.iterdir())


def is_certificate(file: str) -> bool:
    return "BEGIN CERTIFICATE" in Path(file).read_text()


@pytest.mark.parametrize("provider", WHO)
async def test_the_story_holds(start: Start, temporary: Path, provider: str) -> None:
    options = () if provider == "apns" else ("--provider", provider)
    code, out, err = await finish(await start(*options))
    assert (code, err) == (0, "")
    assert "All of it held" in out
    assert "Relay  kill -9\n" in out
    assert re.findall(r"^ *Recipient  I fetched message .*: '(.*)'$", out, re.MULTILINE) == [
        "hello",
        "are you there?",
        "and the next one",
    ]
    assert out.count("The ids are equal on both paths") == 3
    sizes = [int(s) for s in re.findall(rf"^ *{WHO[provider]}  .* (\d+) bytes for ", out, re.MULTILINE)]
    assert len(sizes) == 4
    assert max(sizes) <= 4096
    assert len(set(sizes[1:])) == 1
    assert not any(other in out for name, other in WHO.items() if name != provider)
    assert "'hello'" not in "".join(re.findall(rf"^ *{WHO[provider]}  .*$", out, re.MULTILINE))
    assert is_empty(temporary)


@pytest.mark.long
async def test_the_story_of_many_nodes_holds(start: Start, temporary: Path) -> None:
    """The node that has the queue is killed; another one wakes the device, when the lease is over."""
    code, out, err = await finish(await start("--nodes", "3"))
    assert (code, err) == (0, ""), out
    [dead] = re.findall(r"^ *Relay  (relay\d): kill -9$", out, re.MULTILINE)
    [(heir, seconds)] = re.findall(r"^ *Relay  (relay\d): (\S+) s later its lease is over", out, re.MULTILINE)
    assert heir != dead and 1 < float(seconds) < 10
    assert re.findall(r"^ *Recipient  I fetched message .*: '(.*)'$", out, re.MULTILINE) == [
        "hello",
        "are you there?",
        "and the next one",
    ]
    assert out.count("The ids are equal on both paths") == 3
    assert is_empty(temporary)


async def test_nodes_that_are_stopped_in_the_middle_leave_nothing_behind(start: Start, temporary: Path) -> None:
    process = await start("--nodes", "2")
    await until(process, "2. It subscribes a queue")
    process.send_signal(signal.SIGINT)
    code, _, err = await finish(process)  # relays and Valkey share standard error: they are gone too
    assert (code, "Traceback" in err) == (130, False)
    assert is_empty(temporary)


@pytest.mark.parametrize("provider", WHO)
async def test_kept_it_sends_what_is_typed_and_ends_on_sigterm(start: Start, temporary: Path, provider: str) -> None:
    process = await start("--provider", provider, "--keep", stdin=asyncio.subprocess.PIPE)
    shown = await until(process, "Ctrl-C ends it.")
    assert re.search(r"^relay +ntf://\S+@localhost:\d+$", shown, re.MULTILINE)
    assert re.search(r"^SMP server +smp://\S+$", shown, re.MULTILINE)
    ca_file = re.search(r"^mock .* https://localhost:\d+ \(CA: (\S+)\)$", shown, re.MULTILINE)
    assert ca_file
    assert is_certificate(ca_file[1])

    state = re.search(r"^device +ntf-client --state (\S+) status$", shown, re.MULTILINE)
    assert state
    status = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ntf_client", "--state", state[1], "status"), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert b" ACTIVE\n" in (await asyncio.wait_for(status.communicate(), TIMEOUT))[0]

    assert process.stdin is not None
    process.stdin.write(b"typed by hand\n")
    told = await until(process, "The ids are equal")
    assert f"{WHO[provider]}  " in told
    assert "'typed by hand'" in told

    process.send_signal(signal.SIGTERM)
    code, _, err = await finish(process)
    assert (code, err) == (0, "")
    assert is_empty(temporary)


async def test_kept_without_anybody_who_types(start: Start) -> None:
    process = await start("--keep")
    assert "A line that you type" not in await until(process, "Ctrl-C ends it.")
    process.send_signal(signal.SIGINT)
    assert (await finish(process))[::2] == (0, "")


async def test_kept_until_the_end_of_the_input(start: Start) -> None:
    process = await start("--keep", stdin=asyncio.subprocess.PIPE)
    await until(process, "Ctrl-C ends it.")
    assert process.stdin is not None
    process.stdin.close()
    assert (await finish(process))[::2] == (0, "")


async def test_stopped_in_the_middle_it_leaves_nothing_behind(start: Start, temporary: Path) -> None:
    process = await start()
    await until(process, "2. It subscribes a queue")
    process.send_signal(signal.SIGTERM)
    code, _, err = await finish(process)  # the relay shares standard error: it is gone too
    assert (code, "Traceback" in err) == (128 + signal.SIGTERM, False)
    assert is_empty(temporary)


LYING = """
import json, runpy, subprocess, sys
sys.path.remove({here!r})
sys.modules.pop("ntf_client")
if "decrypt" not in sys.argv:
    runpy.run_module("ntf_client", run_name="__main__", alter_sys=True)
command = [sys.executable, "-P", "-m", "ntf_client", *sys.argv[1:]]
opened = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
for notification in opened.get("notifications", []):
    notification["message_id"] = "AAAA"
print(json.dumps(opened))
"""


@pytest.mark.parametrize(
    ("client", "why"),
    [("raise SystemExit(1)", "ntf_client failed"), (LYING, "the message ids differ")],
    ids=["broken", "lying"],
)
async def test_what_does_not_hold_is_a_failure(
    start: Start, tmp_path: Path, temporary: Path, client: str, why: str
) -> None:
    (tmp_path / "ntf_client").mkdir()  # the demo's own folder comes first where Python looks
    (tmp_path / "ntf_client" / "__init__.py").touch()
    (tmp_path / "ntf_client" / "__main__.py").write_text(client.format(here=str(tmp_path)))
    code, out, err = await finish(await start())
    assert (code, err) == (1, f"The demo failed: {why}\n")
    assert "All of it held" not in out
    assert is_empty(temporary)


async def test_an_unknown_provider(start: Start) -> None:
    code, out, err = await finish(await start("--provider", "pigeon"))
    assert (code, out) == (2, "")
    assert "apns, fcm, webpush" in err.replace("'", "")  # some versions of Python quote them
