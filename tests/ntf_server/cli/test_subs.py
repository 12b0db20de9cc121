"""`ntf-server subs`; of a running server: test_servers.py."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import in_process, one_line, store_of
from store_world import SMP, activate, subscribe

from ntf_server.admin.servers import UNKNOWN
from ntf_server.cli.subs import disagreements
from smp_bridge.encoding import b64url


@pytest.fixture
async def subscription(made: Path) -> str:
    """Its id, in the store of `made`."""
    store = await store_of(made)
    [added] = await subscribe(store, await activate(store), b"one")
    await store.close()
    return b64url(added.subscription_id)


async def test_of_the_store(made: Path, subscription: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = await asyncio.to_thread(in_process, capsys, "subs", "show", "--path", made, "--", subscription)
    server, status, told, device = out.splitlines()
    assert (code, err) == (0, "")
    assert (server, status) == ("server         smp.example.org", "status         NEW")
    assert told == "told its app   nothing: the server does not run"
    assert device.startswith("device         AP ") and device.endswith(", registration ACTIVE")
    shown = ("subs", "show", "--json", "--path", made, "--", subscription)
    _, out, _ = await asyncio.to_thread(in_process, capsys, *shown)
    assert json.loads(out)["status"] == "NEW"
    code, out, _ = await asyncio.to_thread(in_process, capsys, "subs", "check", "--path", made)
    first, new, last = out.splitlines()
    assert (code, first, new.split()) == (1, "wanted         1 subscriptions on 1 SMP servers", ["NEW", "1"])
    assert last == "The server does not run: nothing is subscribed. This is what its store wants."
    code, out, _ = await asyncio.to_thread(in_process, capsys, "subs", "check", "--path", made, "--json")
    answer = json.loads(out)
    assert (code, answer["running"], answer["wrong"], answer["statuses"]) == (1, False, [], {"NEW": 1})


@pytest.mark.usefixtures("subscription")
async def test_of_who_is_unknown(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = await asyncio.to_thread(in_process, capsys, "subs", "show", "rubbish", "--path", made)
    assert (code, out, one_line(err)) == (1, "", f"ntf-server: {UNKNOWN}")


def test_without_a_store(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in (("check",), ("show", "A" * 32)):
        code, out, err = in_process(capsys, "subs", *action, "--path", made)
        assert (code, out) == (2, "")
        assert one_line(err) == f"ntf-server: {made}/ntf-server.db: not found; start the server first"
    assert not (made / "ntf-server.db").exists()


def of(wanted: int, *, damaged: int = 0, shared: bool = False, **session: Any) -> list[str]:
    """What is wrong of a server that so many subscriptions are wanted of."""
    whole = {"connected": True, "complete": True, "for": 100.0, "active": 0, "pending": 0, "failure": ""} | session
    one = {
        "server": str(SMP.plain),
        "wanted": wanted,
        "statuses": {"ACTIVE": wanted} | ({"damaged": damaged} if damaged else {}),
        "session": whole if session else None,
    }
    return [line.removeprefix("smp.example.org: ") for line in disagreements(one, shared=shared)]


def test_what_agrees() -> None:
    assert of(5, active=5) == of(5, active=3, pending=2) == of(0, active=0) == of(0) == []
    assert of(5, connected=False, **{"for": 59.0}) == of(5, complete=False, active=1, **{"for": 59.0}) == []
    assert of(0, connected=False) == of(5, shared=True) == []


def test_what_does_not() -> None:
    assert of(5) == ["5 are wanted, and the server is not connected to"]
    assert of(5, connected=False, failure="tcp") == ["5 are wanted, and it is away for 100 s (tcp)"]
    assert of(5, active=3, pending=1) == ["1 of 5 that are wanted are not active"]
    assert of(5, active=6) == ["1 are active that are not wanted"]
    assert of(5, active=3, complete=False) == ["2 of 5 that are wanted were not asked for yet"]
    assert of(5, active=5, damaged=2) == ["2 subscriptions cannot be read: their apps have to make them anew"]
