import asyncio

import pytest

from smp_bridge.places import Places


def places_of(connecting: int, slow: int, slow_connect: float = 0.05) -> Places:
    return Places(connecting, slow_connect, slow)


async def connect_when(places: Places, go_on: asyncio.Event, began: asyncio.Event) -> str:
    try:
        async with places.place():
            began.set()
            await go_on.wait()
    except TimeoutError:
        return "cut off"
    return "connected"


async def test_so_many_connect_at_once() -> None:
    places, go_on = places_of(3, 10, slow_connect=1000.0), asyncio.Event()
    began = [asyncio.Event() for _ in range(8)]
    tasks = [asyncio.create_task(connect_when(places, go_on, b)) for b in began]
    await asyncio.gather(*(b.wait() for b in began[:3]))
    for _ in range(10):
        await asyncio.sleep(0)
    assert [b.is_set() for b in began] == [True] * 3 + [False] * 5
    go_on.set()
    assert await asyncio.gather(*tasks) == ["connected"] * 8


async def test_the_slow_give_their_places_away_and_too_many_are_cut_off() -> None:
    places, go_on = places_of(2, 3), asyncio.Event()
    began = [asyncio.Event() for _ in range(7)]
    tasks = [asyncio.create_task(connect_when(places, go_on, b)) for b in began]
    await asyncio.wait_for(asyncio.gather(*(b.wait() for b in began)), 5)
    async with asyncio.timeout(5):
        while sum(t.done() for t in tasks) < 4:
            await asyncio.wait([t for t in tasks if not t.done()], return_when=asyncio.FIRST_COMPLETED)
    assert [t.result() for t in tasks if t.done()] == ["cut off"] * 4
    tasks = [t for t in tasks if not t.done()]
    go_on.set()
    assert await asyncio.gather(*tasks) == ["connected"] * 3
    # All places are free again: none was lost, none given twice.
    go_on = asyncio.Event()
    began = [asyncio.Event() for _ in range(3)]
    later = [asyncio.create_task(connect_when(places, go_on, b)) for b in began]
    await asyncio.gather(*(b.wait() for b in began[:2]))
    assert not began[2].is_set()
    go_on.set()
    assert await asyncio.gather(*later) == ["connected"] * 3


async def test_who_was_quick_gives_one_place_back() -> None:
    places, go_on = places_of(1, 10), asyncio.Event()
    for _ in range(3):
        async with places.place():
            pass
    began = [asyncio.Event() for _ in range(3)]
    tasks = [asyncio.create_task(connect_when(places, go_on, b)) for b in began]
    await began[1].wait()  # the first proved slow, and by then the quick ones would have too
    for _ in range(10):
        await asyncio.sleep(0)
    assert not began[2].is_set()
    go_on.set()
    assert await asyncio.gather(*tasks) == ["connected"] * 3


@pytest.mark.parametrize("slow", [False, True])
async def test_a_place_is_free_after_a_failure(slow: bool) -> None:
    places = places_of(1, 1)
    for _ in range(3):
        with pytest.raises(OSError, match="refused"):
            async with places.place():
                if slow:
                    await asyncio.sleep(0.1)
                raise OSError("refused")
    waiting = asyncio.Event()
    assert await connect_when(places, waiting, waiting) == "connected"
