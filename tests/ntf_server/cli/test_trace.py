"""`ntf-server trace`, of a running server and on the database of one that is stopped."""

import asyncio
import json
import os
import re
import signal
from pathlib import Path

import pytest
from command_line import COMMAND, in_process, one_line, run, store_of
from harness import Phone, RelayProcess
from store_world import activate

from ntf_server.admin.trace import UNKNOWN
from ntf_server.testing import MockApns
from smp_bridge.client import Client
from smp_bridge.encoding import b64url

WHEN = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d"
ID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-a[0-9a-f]{3}-[0-9a-f]{12}"


def shown(*patterns: str) -> str:
    return "".join(rf"{pattern}\n" for pattern in patterns)


async def test_of_a_running_server_and_then_of_its_store(relay_process: RelayProcess, mock_apns: MockApns) -> None:
    """What ends while it is followed is told as it ends. Over a restart the last push is known."""
    phone = Phone(mock_apns)
    directory = relay_process.directory
    async with await Client.connect(relay_process.address) as client:
        await phone.register(client)
        await phone.verify(client)
        name = ["trace", f"--path={directory}", "--", b64url(phone.token_id)]
        first = await asyncio.to_thread(run, *name)
        device = rf"device        AT [0-9a-f]{{12}}\nregistration  ACTIVE, last command {WHEN}\n"
        last = rf"last push     {WHEN} delivered, id {ID}\n"
        push = rf"{WHEN}  AT  verification, \d+\.\d s old, attempt 1: delivered, id {ID}\n"
        assert re.fullmatch(device + last + push, first.stdout), first.stdout
        follow = await asyncio.create_subprocess_exec(*COMMAND, *name[:2], "--follow", "--json", *name[2:], stdout=-1)
        assert follow.stdout is not None
        answer = json.loads(await asyncio.wait_for(follow.stdout.readline(), 20))
        assert len(answer["pushes"]) == 1 and answer["token"]["status"] == "ACTIVE"
        await phone.register(client)
        told = json.loads(await asyncio.wait_for(follow.stdout.readline(), 20))
        assert (told["kind"], told["outcome"], told["token"]) == ("verification", "delivered", answer["fingerprint"])
        follow.send_signal(signal.SIGINT)
        assert await follow.wait() == 130
    assert await relay_process.stop() == 0
    stopped = await asyncio.to_thread(run, *name)
    none_else = r"The server does not run: of other pushes nothing is known\.\n"
    assert re.fullmatch(device + last + none_else, stopped.stdout), stopped.stdout
    assert told["push"] in stopped.stdout
    done = await asyncio.to_thread(run, *name[:2], "--follow", *name[2:])
    assert (done.returncode, done.stdout) == (1, "") and "no ntf-server is running there" in one_line(done.stderr)


async def test_of_a_token_that_was_never_pushed_to(made: Path) -> None:
    store = await store_of(made)
    token = await activate(store)
    await store.close()
    done = await asyncio.to_thread(run, "trace", "--path", made, "--json", "--", b64url(token.token_id))
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer["token"]["last_push"] is None and answer["pushes"] is None


async def test_of_who_is_unknown(made: Path) -> None:
    await (await store_of(made)).close()
    done = await asyncio.to_thread(run, "trace", "--path", made, "0" * 12)
    assert (done.returncode, done.stdout) == (1, "")
    assert one_line(done.stderr) == f"ntf-server: {UNKNOWN}"


def test_without_a_store(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = in_process(capsys, "trace", "--path", made, "0" * 12)
    assert code == 2
    assert one_line(err) == f"ntf-server: {made}/ntf-server.db: not found; start the server first"
    assert not os.path.exists(made / "ntf-server.db")  # noqa: PTH110
