"""Who owns tasks: what fails starts again, is counted and told; a stop ends everything, in order and in time."""

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import virtual_time
from hypothesis import given
from hypothesis import strategies as st
from scrape import sample

from ntf_server import supervisor as module
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import KindCounter
from ntf_server.supervisor import MAX_BACKOFF, MIN_BACKOFF, Stage, Supervisor, backoff

pytestmark = pytest.mark.usefixtures("no_task_is_forgotten")


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
def no_task_is_forgotten(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    gc.collect()
    assert [r.getMessage() for r in caplog.records if r.name == "asyncio"] == []


def supervised(test: Callable[[Supervisor, Counter[str]], Coroutine[Any, Any, None]]) -> None:
    """Run a test in virtual time, with a supervisor that leaves no task behind."""

    async def run() -> None:
        counted: Counter[str] = Counter()
        await test(Supervisor(lambda name: counted.update([name]), rng=lambda: 0.0), counted)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    virtual_time.run(run())


class Boom(Exception):
    """What a part fails with."""


def test_a_part_that_fails_is_started_again_and_counted() -> None:
    async def test(supervisor: Supervisor, counted: Counter[str]) -> None:
        starts: list[float] = []

        async def part() -> None:
            starts.append(now())
            raise Boom

        begun = now()
        supervisor.part("periodic", part)
        await asyncio.sleep(16)
        assert [round(t - begun) for t in starts] == [0, 1, 3, 7, 15]
        assert counted == {"periodic": 5}
        assert supervisor.waiting == {"periodic"}
        await supervisor.stop()
        assert supervisor.waiting == frozenset()

    supervised(test)


def test_the_backoff_has_an_end_and_begins_anew_after_a_while() -> None:
    async def test(supervisor: Supervisor, _: Counter[str]) -> None:
        ran = iter([0.0] * 8 + [61.0, 0.0])
        ends: list[float] = []
        waits: list[float] = []

        async def part() -> None:
            if ends:
                waits.append(now() - ends[-1])
            await asyncio.sleep(next(ran))
            ends.append(now())
            raise Boom

        supervisor.part("audit", part)
        async with asyncio.timeout(1000):
            while len(waits) < 9:
                await asyncio.sleep(1)
        assert [round(w) for w in waits] == [1, 2, 4, 8, 16, 32, 60, 60, 1]
        await supervisor.stop()

    supervised(test)


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_backoff_is_bounded_and_grows(failures: int, chance: float) -> None:
    assert MIN_BACKOFF <= backoff(failures, chance) <= MAX_BACKOFF
    assert backoff(failures, chance) <= backoff(failures + 1, chance)


def test_one_part_s_failures_touch_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def test(supervisor: Supervisor, counted: Counter[str]) -> None:
        turns = 0

        async def healthy() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(1)
                turns += 1

        async def sick() -> None:
            await asyncio.sleep(0.1)
            raise Boom

        supervisor.part("audit", healthy)
        supervisor.part("periodic", sick)
        await asyncio.sleep(100.5)
        assert turns == 100
        assert counted.keys() == {"periodic"}
        await supervisor.stop()

    supervised(test)


def test_failures_are_told_with_their_traceback_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async def test(supervisor: Supervisor, counted: Counter[str]) -> None:
        async def part() -> None:
            raise Boom("why")

        supervisor.part("periodic", part)
        supervisor.part("audit", part)
        await asyncio.sleep(59)
        told = [r.getMessage() for r in caplog.records]
        assert sorted(told) == ["audit failed: why", "periodic failed: why"]
        assert all(r.exc_info and r.exc_info[0] is Boom and r.exc_info[2] for r in caplog.records)
        assert counted["audit"] == 6
        await asyncio.sleep(62)
        assert len(caplog.records) == 4
        await supervisor.stop()

    supervised(test)


def test_a_part_that_returns_is_done() -> None:
    async def test(supervisor: Supervisor, counted: Counter[str]) -> None:
        starts = 0

        async def part() -> None:
            nonlocal starts
            starts += 1

        supervisor.part("listener", part, critical=True)
        await asyncio.sleep(300)
        assert (starts, counted) == (1, {})
        assert not supervisor.failed.done()
        await supervisor.stop()

    supervised(test)


def test_a_critical_part_fails_the_relay() -> None:
    async def test(supervisor: Supervisor, counted: Counter[str]) -> None:
        async def part() -> None:
            await asyncio.sleep(5)
            raise Boom

        supervisor.part("store", part, critical=True)
        with pytest.raises(Boom):
            await supervisor.failed
        supervisor.fail(RuntimeError("too late: the first is told"))
        assert isinstance(supervisor.failed.exception(), Boom)
        assert counted == {"store": 1}
        await supervisor.stop()

    supervised(test)


def test_what_ends_the_relay_is_not_told_by_each_part_that_meets_it(caplog: pytest.LogCaptureFixture) -> None:
    async def test(supervisor: Supervisor, counted: Counter[str]) -> None:
        async def meet(error: Boom) -> None:
            raise error

        end = Boom()
        supervisor.fail(end)
        await supervisor.spawn(meet(end), "audit")
        assert not caplog.records
        await supervisor.spawn(meet(Boom("by itself")), "checks")
        assert [record.getMessage() for record in caplog.records] == ["checks failed: by itself"]
        assert counted == {"audit": 1, "checks": 1}
        await supervisor.stop()

    supervised(test)


def test_a_failure_that_nobody_looked_at_is_no_complaint_of_asyncio() -> None:
    async def test(supervisor: Supervisor, _: Counter[str]) -> None:
        supervisor.fail(Boom())
        await supervisor.stop()

    supervised(test)


def test_a_cancellation_from_inside_is_a_failure() -> None:
    """A future that others cancelled must not take the part with it, unnoticed."""

    async def test(supervisor: Supervisor, counted: Counter[str]) -> None:
        starts = 0

        async def part() -> None:
            nonlocal starts
            starts += 1
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

        supervisor.part("audit", part)
        await asyncio.sleep(2)
        assert (starts, counted["audit"]) == (2, 2)
        await supervisor.stop()

    supervised(test)


def test_a_part_that_fails_before_it_awaits_anything() -> None:
    async def test(supervisor: Supervisor, counted: Counter[str]) -> None:
        def part() -> Any:
            raise Boom

        supervisor.part("audit", part)
        await asyncio.sleep(0.5)
        assert counted == {"audit": 1}
        await supervisor.stop()

    supervised(test)


def test_spawned_tasks_are_told_of_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def test(supervisor: Supervisor, counted: Counter[str]) -> None:
        async def good() -> int:
            return 7

        async def bad() -> int:
            raise Boom("why")

        assert await supervisor.spawn(good(), "other") == 7
        assert await supervisor.spawn(bad(), "reload") is None
        assert counted == {"reload": 1}
        assert [r.getMessage() for r in caplog.records] == ["reload failed: why"]
        await supervisor.stop()

    supervised(test)


def test_the_metric() -> None:
    metrics = Metrics()
    for name in ("periodic checks", "push AP 1", "push AT 2", "push outcomes", "a name that is in no list"):
        metrics.count_part(name)
    counted = {n: metrics.value(KindCounter.PART_FAILURES, n) for n in ("periodic_checks", "push", "push_outcomes")}
    assert counted == {"periodic_checks": 1, "push": 2, "push_outcomes": 1}
    assert sample(metrics, KindCounter.PART_FAILURES, part="other") == 1


# --- the end


def test_a_stop_goes_stage_by_stage() -> None:
    async def test(supervisor: Supervisor, _: Counter[str]) -> None:
        ended: list[str] = []

        def part(name: str, stage: Stage) -> None:
            async def run() -> None:
                try:
                    await asyncio.sleep(1000)
                finally:
                    ended.append(name)

            supervisor.part(name, run, stage=stage)

        def closing(name: str, stage: Stage) -> None:
            async def close(_: float) -> None:
                await asyncio.sleep(1)
                ended.append(name)

            supervisor.on_stop(stage, name, close)

        closing("store", Stage.CLOSE)
        closing("providers", Stage.PUSH)
        closing("dispatcher", Stage.PUSH)
        closing("subscriber", Stage.DRAIN)
        part("lane", Stage.PUSH)
        part("periodic", Stage.ACCEPT)
        closing("listener", Stage.ACCEPT)
        await asyncio.sleep(1)
        await supervisor.stop()
        assert ended == ["periodic", "listener", "subscriber", "lane", "dispatcher", "providers", "store"]

    supervised(test)


def test_all_share_one_deadline_and_the_last_gets_a_little() -> None:
    async def test(supervisor: Supervisor, _: Counter[str]) -> None:
        left: dict[str, float] = {}

        def closing(stage: Stage, takes: float) -> None:
            async def close(seconds: float) -> None:
                left[stage.name] = round(seconds, 2)
                await asyncio.sleep(takes)

            supervisor.on_stop(stage, stage.name, close)

        for stage, takes in zip(Stage, (4, 1000, 0.1, 0.1), strict=True):
            closing(stage, takes)
        begun = now()
        await supervisor.stop(10)
        assert left == {"ACCEPT": 10, "DRAIN": 6, "PUSH": module.LEAST, "CLOSE": module.LEAST}
        assert now() - begun < 10 + 4 * module.LEAST

    supervised(test)


def test_what_fails_while_it_closes_keeps_nobody_from_closing(caplog: pytest.LogCaptureFixture) -> None:
    async def test(supervisor: Supervisor, counted: Counter[str]) -> None:
        closed: list[str] = []

        async def bad(_: float) -> None:
            raise Boom("why")

        async def good(_: float) -> None:
            closed.append("store")

        supervisor.on_stop(Stage.ACCEPT, "listener", bad)
        supervisor.on_stop(Stage.CLOSE, "store", good)
        await supervisor.stop()
        assert (closed, counted) == (["store"], {"listener": 1})
        assert [r.getMessage() for r in caplog.records] == ["listener failed: why"]

    supervised(test)


def test_a_part_that_swallows_cancellation_is_cancelled_again() -> None:
    async def test(supervisor: Supervisor, _: Counter[str]) -> None:
        swallowed = 0

        async def part() -> None:
            nonlocal swallowed
            while swallowed < 3:
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    swallowed += 1

        supervisor.part("audit", part)
        await asyncio.sleep(1)
        begun = now()
        await supervisor.stop(10)
        assert swallowed == 3
        assert now() - begun < 4

    supervised(test)


def test_what_never_ends_is_bounded_by_the_deadline_and_named(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        supervisor = Supervisor()
        released = False

        async def part() -> None:
            while not released:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(1000)

        closed: list[float] = []

        async def close(seconds: float) -> None:
            closed.append(seconds)

        supervisor.part("audit", part)
        supervisor.on_stop(Stage.CLOSE, "store", close)
        await asyncio.sleep(1)
        begun = now()
        await supervisor.stop(10)
        assert now() - begun < 10 + 4 * module.LEAST
        assert closed == [module.LEAST]
        assert [r.getMessage() for r in caplog.records] == ["did not end: audit"]
        released = True
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            await asyncio.wait([task])

    virtual_time.run(test())


def test_a_part_that_fails_while_it_is_stopped_does_not_start_again() -> None:
    async def test(supervisor: Supervisor, counted: Counter[str]) -> None:
        starts = 0

        async def part() -> None:
            nonlocal starts
            starts += 1
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                raise Boom from None

        supervisor.part("audit", part)
        await asyncio.sleep(1)
        begun = now()
        await supervisor.stop()
        assert (starts, counted["audit"], now()) == (1, 1, begun)

    supervised(test)


def test_nothing_starts_after_the_stop() -> None:
    async def test(supervisor: Supervisor, _: Counter[str]) -> None:
        async def part() -> None:
            raise AssertionError

        await supervisor.stop()
        with pytest.raises(RuntimeError, match="audit: the relay has stopped"):
            supervisor.part("audit", part)
        with pytest.raises(RuntimeError, match="reload: the relay has stopped"):
            supervisor.spawn(part(), "reload")

    supervised(test)


def test_to_stop_twice_is_to_stop_once() -> None:
    async def test(supervisor: Supervisor, _: Counter[str]) -> None:
        closed: list[str] = []

        async def close(_: float) -> None:
            closed.append("store")

        supervisor.on_stop(Stage.CLOSE, "store", close)
        await supervisor.stop()
        await supervisor.stop()
        assert closed == ["store"]

    supervised(test)
