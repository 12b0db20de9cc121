"""`ntf-server servers`, of a running server and of the store of one that is stopped; `subs check` of the same."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import in_process, one_line, run, store_of
from harness import Phone, RelayProcess
from store_world import OTHER_SMP, SMP, activate, subscribe

from ntf_server.cli.servers import UNKNOWN, name_of, session_text
from ntf_server.testing import MockApns
from smp_bridge.client import Client
from smp_bridge.encoding import b64url
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient


@pytest.fixture
async def wanting(made: Path) -> Path:
    """The folder of a server that wants three queues on one SMP server, and one on another."""
    store = await store_of(made)
    token = await activate(store)
    await subscribe(store, token, b"one", b"two", b"three")
    await subscribe(store, token, b"other", server=OTHER_SMP)
    await store.close()
    return made


async def test_of_a_running_server_until_its_smp_server_is_gone(
    relay_process: RelayProcess, mock_apns: MockApns, smp_server: SmpServer
) -> None:
    at = f"--path={relay_process.directory}"

    async def told(*arguments: str) -> Any:
        done = await asyncio.to_thread(run, *arguments[:2], at, *arguments[2:])
        assert done.stderr == "", done.stderr
        return done.stdout

    phone = Phone(mock_apns)
    async with (
        await Client.connect(relay_process.address) as client,
        await Recipient.connect(smp_server.address) as recipient,
    ):
        await phone.register(client)
        await phone.verify(client)
        queue = await recipient.queue()
        subscription = await phone.subscribe(client, smp_server.address, queue)
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
    async with asyncio.timeout(20):
        while "agree" not in (text := await told("subs", "check")).replace("is what is subscribed", "agree"):
            await asyncio.sleep(0.1)
    assert text.splitlines()[:3] == [
        "wanted         1 subscriptions on 1 SMP servers",
        "active         1 in 1 sessions of this node",
        "pending        0",
    ]
    name = name_of(str(smp_server.address.plain))
    head, line = (await told("servers", "list")).splitlines()
    assert head.split() == ["server", "wanted", "active", "others", "session"]
    assert line.split()[:4] == [name, "1", "1", "0"] and "connected for" in line
    shown = (await told("servers", "show", "LOCALHOST")).splitlines()
    assert shown[0] == f"server         {smp_server.address.plain}"
    assert shown[-1] == "last failure   none since the start"
    sub = await told("subs", "show", "--json", "--", b64url(subscription))
    assert json.loads(sub)["told"] == "ACTIVE"
    await smp_server.stop()
    async with asyncio.timeout(20):
        while "away for" not in (line := (await told("servers", "list")).splitlines()[1]):
            await asyncio.sleep(0.1)
    assert line.split()[1:4] == ["1", "0", "0"]


async def test_of_the_store(wanting: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = await asyncio.to_thread(in_process, capsys, "servers", "list", "--path", wanting)
    first, second = (name_of(str(server.plain)) for server in (SMP, OTHER_SMP))
    _, *lines, last = out.splitlines()
    assert (code, err) == (0, "")
    assert [line.split() for line in lines] == [[first, "3", "-", "0", "-"], [second, "1", "-", "0", "-"]]
    assert last == "The server does not run: this is what its store wants."
    _, out, _ = await asyncio.to_thread(in_process, capsys, "servers", "list", "--path", wanting, "--limit", 1)
    assert out.splitlines()[-2] == "And 1 more: --limit shows them."
    _, out, _ = await asyncio.to_thread(in_process, capsys, "servers", "list", "--path", wanting, "--json")
    answer = json.loads(out)
    assert (answer["running"], answer["more"], [one["wanted"] for one in answer["servers"]]) == (False, 0, [3, 1])
    for host in ("smp.example.org", "ABC.onion", "[2001:db8::1]", "2001:db8::1"):
        code, out, _ = await asyncio.to_thread(in_process, capsys, "servers", "show", host, "--path", wanting)
        assert code == 0 and out.splitlines()[-1] == "session        the server does not run"
    code, out, err = await asyncio.to_thread(in_process, capsys, "servers", "show", "nobody", "--path", wanting)
    assert (code, out, one_line(err)) == (1, "", f"ntf-server: {UNKNOWN}")


def test_without_a_store(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in (("list",), ("show", "host")):
        code, out, err = in_process(capsys, "servers", *action, "--path", made)
        assert (code, out) == (2, "")
        assert one_line(err) == f"ntf-server: {made}/ntf-server.db: not found; start the server first"
    assert not (made / "ntf-server.db").exists()


@pytest.mark.parametrize(
    ("session", "text"),
    [
        (None, "not of this node"),
        ({"connected": True, "service": True, "own": True, "for": 300}, "own, connected as a service for 5 min"),
        (
            {"connected": False, "own": False, "for": 5, "failure": "tcp", "retry_in": 7.4},
            "away for 5 s: tcp, next try in 7 s",
        ),
        ({"connected": False, "own": False, "for": 5, "failure": "", "retry_in": None}, "away for 5 s"),
    ],
)
def test_sessions_in_a_few_words(session: dict[str, Any] | None, text: str) -> None:
    assert session_text({"wanted": 1, "session": session}, runs=True) == text
    assert session_text({"wanted": 1, "session": session}, runs=False) == "-"
    assert session_text({"wanted": 0, "session": None}, runs=True) == "none, nothing is wanted"


def test_names() -> None:
    assert [name_of(str(server.plain)) for server in (SMP, OTHER_SMP)] == ["smp.example.org", "[2001:db8::1]:5224"]
