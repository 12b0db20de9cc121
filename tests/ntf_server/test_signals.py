"""Signals before there is a loop, while it runs, and at the end; `tests/ntf_server/cli/test_start.py` has processes."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from ntf_server.signals import Signals


@pytest.fixture
def signals() -> Iterator[Signals]:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    made = Signals()
    made.install()
    yield made
    made.restore()
    assert {n: signal.getsignal(n) for n in before} == before


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_end_before_there_is_a_loop(signals: Signals, number: signal.Signals) -> None:
    with pytest.raises(SystemExit) as e:
        send(number)
    assert e.value.code == 0


async def test_what_came_before_is_passed_on_once(signals: Signals) -> None:
    send(signal.SIGHUP)
    send(signal.SIGHUP)
    with pytest.raises(SystemExit):  # which somebody swallows
        send(signal.SIGTERM)
    came: list[str] = []
    signals.attach(asyncio.get_running_loop(), lambda: came.append("end"), lambda: came.append("reload"))
    await asyncio.sleep(0.01)
    assert came == ["end", "reload"]


async def test_while_the_loop_runs(signals: Signals) -> None:
    came: list[str] = []
    woken = asyncio.Event()

    def end() -> None:
        came.append("end")
        woken.set()

    signals.attach(asyncio.get_running_loop(), end, lambda: came.append("reload"))
    asyncio.get_running_loop().call_later(0.05, send, signal.SIGHUP)
    asyncio.get_running_loop().call_later(0.1, send, signal.SIGTERM)
    await asyncio.wait_for(woken.wait(), 5)  # out of a select without a timer of its own
    assert came == ["reload", "end"]
    signals.detach()
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        send(number)
    await asyncio.sleep(0.01)
    assert came == ["reload", "end"]
