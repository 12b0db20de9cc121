import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from sim.loop import START, DeadlockError, EndlessError, Life, VirtualLoop, virtual_loop


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, Any]]) -> Any:
    with virtual_loop() as loop:
        return loop.run_until_complete(main(loop))


def test_a_year_passes_at_once() -> None:
    async def main(loop: VirtualLoop) -> float:
        await asyncio.sleep(365 * 86400.0)
        return loop.time()

    assert run(main) == START + 365 * 86400.0


def test_timers_run_in_the_order_of_their_times_then_of_their_making() -> None:
    async def main(loop: VirtualLoop) -> list[str]:
        seen: list[str] = []
        for delay, name in ((2, "c"), (1, "a"), (1, "b")):
            loop.call_later(delay, seen.append, name)
        await asyncio.sleep(3)
        return seen

    assert run(main) == ["a", "b", "c"]


def test_what_can_never_go_on_is_a_deadlock() -> None:
    async def main(loop: VirtualLoop) -> None:
        await loop.create_future()

    with pytest.raises(DeadlockError):
        run(main)


def test_what_goes_on_without_time_is_endless() -> None:
    async def main(_: VirtualLoop) -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(EndlessError):
        run(main)


def test_threads_are_done_at_once() -> None:
    async def main(_: VirtualLoop) -> int:
        with contextlib.suppress(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        return await asyncio.to_thread(lambda: 7)

    assert run(main) == 7


def test_a_life_that_is_cut_short_runs_no_cleanup() -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            while True:
                await asyncio.sleep(1)
                seen.append("work")
        finally:
            seen.append("cleaned up")

    async def process() -> None:
        await asyncio.create_task(work())

    with virtual_loop() as loop:

        async def main() -> list[str]:
            life = Life("1")
            life.on_death = lambda: seen.append("died")
            loop.begin(life, process())
            loop.in_world(2.5, life.die)
            loop.in_world(3.5, seen.append, "the world goes on")
            await asyncio.sleep(5)
            return list(seen)

        assert loop.run_until_complete(main()) == ["work", "work", "died", "the world goes on"]


@pytest.mark.parametrize("dies_at", [1, 2, 3, 4, 5])
def test_a_life_can_end_before_any_of_its_steps(dies_at: int) -> None:
    seen: list[int] = []

    async def process() -> None:
        for i in range(10):
            seen.append(i)
            await asyncio.sleep(0)

    with virtual_loop() as loop:

        async def main() -> bool:
            life = Life("1")
            life.dies_at = dies_at
            loop.begin(life, process())
            await asyncio.sleep(1)
            return life.alive

        assert loop.run_until_complete(main()) is False
    assert seen == list(range(dies_at - 1))


def test_tasks_and_timers_that_are_left_are_told() -> None:
    seen: list[asyncio.Task[None]] = []

    async def sleeper() -> None:
        asyncio.get_running_loop().call_later(1000, print)
        cancelled = asyncio.get_running_loop().call_later(1000, print)
        cancelled.cancel()
        await asyncio.sleep(500)

    async def process() -> None:
        seen.append(asyncio.create_task(sleeper(), name="sleeper"))
        await asyncio.sleep(0)

    async def main(loop: VirtualLoop) -> list[str]:
        life = Life("1")
        loop.begin(life, process())
        loop.begin(Life("2"), sleeper())
        await asyncio.sleep(1)
        return sorted(loop.left(life))

    left = run(main)
    assert left[0] == "task sleeper"
    assert [x.split()[0] for x in left] == ["task", "timer", "timer"]  # the sleep, and the one that was not cancelled


def test_sets_of_tasks_have_an_order_that_does_not_change() -> None:
    async def main(_: VirtualLoop) -> list[str]:
        seen: list[str] = []

        async def wait(name: str) -> None:
            try:
                await asyncio.sleep(10)
            finally:
                seen.append(name)

        tasks: set[Awaitable[None]] = {asyncio.create_task(wait(str(i))) for i in range(50)}
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()  # type: ignore[attr-defined]
        await asyncio.wait(tasks)  # type: ignore[type-var]
        return seen

    assert run(main) == run(main)
