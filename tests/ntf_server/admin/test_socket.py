"""The admin socket: who may speak to it, what it takes, and what is said when nobody is there."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ntf_server.admin import socket as module
from ntf_server.admin.socket import MAX_CONNECTIONS, MAX_LINE, AdminError, AdminSocket, ask
from ntf_server.listener import ListenError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


async def echo(request: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"got": request}


async def refuse(_: Mapping[str, Any]) -> Mapping[str, Any]:
    raise AdminError("not today")


async def hang(_: Mapping[str, Any]) -> Mapping[str, Any]:
    await asyncio.sleep(1000)
    return {}


COMMANDS = {"echo": echo, "refuse": refuse, "hang": hang}
Listen = Callable[..., Awaitable[AdminSocket]]


@pytest.fixture
async def listen(path: Path, quiet: None) -> AsyncIterator[Listen]:
    opened: list[AdminSocket] = []

    async def start(commands: Mapping[str, Any] = COMMANDS, **options: Any) -> AdminSocket:
        made = AdminSocket(path, commands, **options)
        await made.start()
        opened.append(made)
        return made

    yield start
    for made in opened:
        await made.close()


async def asked(path: Path, command: str, **arguments: Any) -> dict[str, Any]:
    return await asyncio.to_thread(ask, path, command, **arguments)


async def raw(path: Path, *data: bytes) -> list[dict[str, Any]]:
    """The answers to these bytes, until the server hangs up or has answered as many lines."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"".join(data))
    answers = []
    for _ in range(b"".join(data).count(b"\n") or 1):
        if line := await asyncio.wait_for(reader.readline(), 10):
            answers.append(json.loads(line))
    writer.close()
    await writer.wait_closed()
    return answers


async def test_a_command(listen: Listen, path: Path) -> None:
    await listen()
    assert await asked(path, "echo", a=[1], b="\u1234") == {"got": {"command": "echo", "a": [1], "b": "\u1234"}}


async def test_many_on_one_connection(listen: Listen, path: Path) -> None:
    await listen()
    answers = await raw(path, *(b'{"command": "echo", "n": %d}\n' % n for n in range(100)))
    assert [a["got"]["n"] for a in answers] == list(range(100))


async def test_a_failure_is_told_in_one_line(listen: Listen, path: Path) -> None:
    await listen()
    with pytest.raises(AdminError, match=r"^not today$"):
        await asked(path, "refuse")
    with pytest.raises(AdminError, match=r"^unknown command; there are echo, hang, refuse$"):
        await asked(path, "other")


async def test_a_command_that_fails_unexpectedly(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_: Mapping[str, Any]) -> Mapping[str, Any]:
        raise ZeroDivisionError("SECRET")

    made = AdminSocket(path, {"fail": fail, "echo": echo})
    await made.start()
    with pytest.raises(AdminError, match=r"^it failed; the server's log says why$"):
        await asked(path, "fail")
    assert "got" in await asked(path, "echo")
    await made.close()
    [record] = caplog.records
    assert record.getMessage() == "the command fail failed"
    caplog.clear()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"\n", "not JSON"),
        (b"{\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b'{"command": "\xff"}\n', "not JSON"),
        (b"[" * 10_000 + b"\n", "not JSON"),
        (b"[]\n", "no command"),
        (b"{}\n", "no command"),
        (b'{"command": 7}\n', "no command"),
        (b'{"command": ""}\n', "unknown command; there are echo, hang, refuse"),
        (b"x" * (MAX_LINE + 10) + b"\n", "more than 65536 bytes"),
        (b"x" * (MAX_LINE * 3), "more than 65536 bytes"),
    ],
)
async def test_what_is_no_request(*, listen: Listen, path: Path, line: bytes, error: str) -> None:
    await listen()
    assert await raw(path, line) == [{"ok": False, "error": error, "final": False}]
    assert await raw(path, b'{"command": "echo"}\n') == [{"ok": True, "got": {"command": "echo"}}]


async def test_only_its_user_may_connect(listen: Listen, path: Path) -> None:
    await listen()
    assert path.stat().st_mode & 0o777 == 0o600


async def test_another_user_is_hung_up_on(listen: Listen, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one who could open the file. Root alone can become another, so here the server does."""
    await listen()
    monkeypatch.setattr(module.os, "geteuid", lambda: 12345)
    monkeypatch.setattr(module, "_ROOT", 12346)
    with pytest.raises(AdminError, match="the server hung up; be its user, or root"):
        await asked(path, "echo")


async def test_connections_are_bounded(listen: Listen, path: Path) -> None:
    await listen()
    waiting = [await asyncio.open_unix_connection(path) for _ in range(MAX_CONNECTIONS)]
    for _, writer in waiting:
        writer.write(b'{"command": "echo"}\n')
    for reader, _ in waiting:
        assert await asyncio.wait_for(reader.readline(), 10)
    with pytest.raises(AdminError):
        await asked(path, "echo")
    for _, writer in waiting:
        writer.close()
        await writer.wait_closed()
    async with asyncio.timeout(10):
        while not await answers(path):
            await asyncio.sleep(0.01)


async def answers(path: Path) -> bool:
    try:
        await asked(path, "echo")
    except AdminError:
        return False
    return True


async def test_who_says_nothing_is_hung_up_on(listen: Listen, path: Path) -> None:
    await listen(idle=0.05)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b'{"command": ')
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_a_command_that_takes_too_long(listen: Listen, path: Path) -> None:
    await listen(work=0.05)
    with pytest.raises(AdminError, match=r"^not done within 0\.05 s$"):
        await asked(path, "hang")


async def test_a_server_that_does_not_answer(listen: Listen, path: Path) -> None:
    await listen()
    with pytest.raises(AdminError, match=r"the server did not answer within 0\.1 s"):
        await asked(path, "hang", timeout=0.1)


# --- the file


async def test_nobody_is_there(path: Path, listen: Listen) -> None:
    with pytest.raises(AdminError, match=f"^{path}: no ntf-server is running there$"):
        await asked(path, "echo")
    await (await listen()).close()
    assert not path.exists()


async def test_one_that_a_killed_server_left_is_replaced(path: Path, listen: Listen) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with pytest.raises(AdminError, match="no ntf-server is running there"):
        await asked(path, "echo")
    await listen()
    assert await answers(path)


async def test_one_that_is_in_use_is_left_alone(path: Path, listen: Listen) -> None:
    await listen()
    with pytest.raises(ListenError, match="another ntf-server listens there"):
        await AdminSocket(path, {}).start()
    assert await answers(path)


async def test_what_is_no_socket_is_left_alone(path: Path, listen: Listen) -> None:
    path.write_text("precious")
    with pytest.raises(ListenError, match=f"^{path}: is in the way, and no socket; move it away$"):
        await listen()
    assert path.read_text() == "precious"


async def test_another_s_file_is_not_removed_at_the_end(path: Path, listen: Listen) -> None:
    made = await listen()
    path.unlink()
    path.write_text("precious")
    await made.close()
    assert path.read_text() == "precious"


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="no such folder; create it"):
        await AdminSocket(tmp_path / "missing" / "s", {}).start()


async def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    fits = tmp_path / ("s" * (107 - len(os.fsencode(tmp_path)) - 1))
    made = AdminSocket(fits, COMMANDS)
    await made.start()
    assert await answers(fits)
    await made.close()
    long = fits.with_name(fits.name + "s")
    what = f"^{long}: 108 bytes are too long for a socket's path; set \\[admin\\] socket to one of 107 at most$"
    with pytest.raises(ListenError, match=what):
        await AdminSocket(long, {}).start()
    with pytest.raises(AdminError, match=what):
        await asked(long, "echo")


async def test_a_stop_does_not_wait_for_a_command(path: Path, listen: Listen) -> None:
    made = await listen()
    waiting = asyncio.create_task(asked(path, "hang"))
    async with asyncio.timeout(5):
        while not made._connections:
            await asyncio.sleep(0.01)
        await made.close()
        with pytest.raises(AdminError, match="the server hung up"):
            await waiting
