"""When a store is in trouble, and when that is over."""

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any

import pytest

from ntf_server.observe.events import FIELD, FIELDS, Event
from ntf_server.store.contract import (
    FencedError,
    PartlyUnavailableError,
    StoreConflictError,
    StoreCorruptError,
    StoreFullError,
    StoreUnavailableError,
)
from ntf_server.store.pulse import QUIET, RECENT, SILENT, Failing, Pulse

AWAY = StoreUnavailableError("away")


class World:
    """A store that does what it is told, and its clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pulse = Pulse(clock=lambda: self.now)

    async def does(self, *what: Exception | None) -> None:
        for error in what:
            work: Awaitable[Any] = _does(error)
            if error is None:
                assert await self.pulse.watch(work) == "done"
            else:
                with pytest.raises(type(error)):
                    await self.pulse.watch(work)


async def _does(error: Exception | None) -> str:
    if error is not None:
        raise error
    return "done"


async def test_one_that_does_what_it_should() -> None:
    world = World()
    assert world.pulse.failing is None
    await world.does(None)
    world.now += 1e6  # that nothing is asked of it says nothing
    assert world.pulse.failing is None


async def test_trouble_lasts_until_something_is_done_and_nothing_fails_for_a_while() -> None:
    world = World()
    await world.does(AWAY)
    assert world.pulse.failing == Failing(0.0, "unavailable", partly=False)
    for _ in range(10):
        world.now += QUIET + 1
        await world.does(AWAY)
    assert world.pulse.failing == Failing(10 * (QUIET + 1), "unavailable", partly=False)
    world.now += 100 * QUIET
    assert world.pulse.failing is not None  # nothing shows that it is over
    await world.does(AWAY, None)
    found = world.pulse.failing
    assert found is not None and found.partly  # it does something
    world.now += QUIET
    assert world.pulse.failing is None
    await world.does(AWAY)
    assert world.pulse.failing == Failing(0.0, "unavailable", partly=False)  # another one


async def test_what_may_pass_is_not_yet_its_end() -> None:
    """Nor is it, once the last thing that was asked for was done."""
    world = World()
    await world.does(None, AWAY)
    assert world.pulse.failing == Failing(0.0, "unavailable", partly=True)
    world.now += RECENT
    assert world.pulse.failing == Failing(RECENT, "unavailable", partly=False)
    await world.does(None)
    world.now += QUIET - RECENT - 1
    assert world.pulse.failing == Failing(QUIET - 1, "unavailable", partly=True)


async def test_a_part_of_it_that_fails() -> None:
    world = World()
    partly = PartlyUnavailableError("a shard", None, [])
    for _ in range(5):
        await world.does(partly, None)
        world.now += 2
    assert world.pulse.failing == Failing(10.0, "unavailable", partly=True)
    await world.does(partly)
    world.now += RECENT
    await world.does(partly)
    assert world.pulse.failing == Failing(10 + RECENT, "unavailable", partly=False)  # nothing was done for a while


@pytest.mark.parametrize("error", [StoreFullError("full"), StoreCorruptError("damaged")])
async def test_what_else_is_done_meanwhile_says_nothing_of_a_full_or_damaged_one(error: Any) -> None:
    """What needs no room is done on a full disk too."""
    world = World()
    await world.does(error)
    world.now += 1
    await world.does(None)
    assert world.pulse.failing == Failing(1.0, error.kind, partly=False)
    world.now += QUIET
    assert world.pulse.failing is None


@pytest.mark.parametrize("error", [FencedError("fenced"), StoreConflictError("ours"), KeyError("ours")])
async def test_what_the_store_is_not_to_blame_for(error: Exception) -> None:
    world = World()
    await world.does(error)
    assert world.pulse.failing is None


async def test_one_that_does_not_answer() -> None:
    """A disk that hangs, a server that is frozen: while something is asked for."""
    world = World()
    answers: list[asyncio.Future[None]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
    asking = [asyncio.create_task(world.pulse.watch(answer)) for answer in answers]
    await asyncio.sleep(0)
    world.now += SILENT - 1
    assert world.pulse.failing is None
    world.now += 1
    assert world.pulse.failing == Failing(SILENT, "silent", partly=False)
    answers[0].set_result(None)
    await asking[0]
    assert world.pulse.failing is None
    world.now += SILENT
    assert world.pulse.failing == Failing(SILENT, "silent", partly=False)
    asking[1].cancel()
    await asyncio.wait(asking)
    assert world.pulse.failing is None


# --- what is told


class Story(World):
    """What a trouble tells, second by second."""

    def __init__(self, logged: list[logging.LogRecord]) -> None:
        super().__init__()
        self.logged = logged

    @property
    def told(self) -> list[tuple[Event, dict[str, object]]]:
        found = [(getattr(r, FIELD), getattr(r, FIELDS)) for r in self.logged if hasattr(r, FIELD)]
        self.logged.clear()
        return found

    async def after(self, seconds: float, what: Exception | None = None) -> None:
        self.now += seconds
        await self.does(what)


FULL = StoreFullError("disk full")
TROUBLE = (Event.STORE_TROUBLE, {"reason": "disk full"})


async def test_it_is_told_once_a_minute_and_so_is_its_end(logged: list[logging.LogRecord]) -> None:
    story = Story(logged)
    await story.after(1)
    assert story.told == []
    for _ in range(60):
        await story.after(1, FULL)
    assert story.told == [TROUBLE]
    await story.after(1, FULL)
    assert story.told == [TROUBLE]
    await story.after(QUIET)
    assert story.told == [(Event.STORE_WELL, {"seconds": 60, "failures": 61})]
    assert story.pulse.failing is None
    await story.after(QUIET)
    assert story.told == []
    await story.after(0, FULL)
    assert story.told == [TROUBLE]


async def test_what_works_between_failures_is_not_its_end(logged: list[logging.LogRecord]) -> None:
    """Some of what is asked for goes on while the disk is full, or a primary of a cluster is away."""
    story = Story(logged)
    for _ in range(20):
        await story.after(2, FULL)
        await story.after(2)
    assert [event for event, _ in story.told] == [Event.STORE_TROUBLE, Event.STORE_TROUBLE]
    await story.after(QUIET - 2)
    assert story.told == [(Event.STORE_WELL, {"seconds": 76, "failures": 20})]


async def test_a_trouble_that_was_over_is_told_so_before_the_next_one(logged: list[logging.LogRecord]) -> None:
    story = Story(logged)
    await story.after(0, FULL)
    await story.after(1)
    await story.after(QUIET, FULL)
    assert story.told == [TROUBLE, (Event.STORE_WELL, {"seconds": 0, "failures": 1}), TROUBLE]


async def test_what_does_not_pass_is_told_by_others(logged: list[logging.LogRecord]) -> None:
    story = Story(logged)
    await story.after(1, StoreConflictError("a fault of its caller"))
    await story.after(1, StoreCorruptError("gone"))
    await story.after(QUIET)
    assert story.told == []
    await story.after(1, AWAY)
    assert story.told == [(Event.STORE_TROUBLE, {"reason": "away"})]
