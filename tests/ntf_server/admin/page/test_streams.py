"""Browsers that are told what happens, however slow they are."""

import asyncio

from ntf_server.admin.page.streams import EVENTS, Streams, message


def test_as_it_goes_over_the_wire() -> None:
    assert message("state", b'{"a":1}') == b'event: state\ndata: {"a":1}\n\n'


async def test_all_are_told() -> None:
    streams = Streams()
    first, second = streams.join(), streams.join()
    assert first is not None and second is not None
    streams.publish(b"one;", [b"event;"])
    assert await first.next() == b"event;one;"
    streams.publish(b"two;")
    assert (await first.next(), await second.next()) == (b"two;", b"event;two;")
    streams.leave(first)
    streams.publish(b"three;")
    assert await second.next() == b"three;"
    assert len(streams) == 1


async def test_who_is_slow_gets_the_last_state_and_the_last_events() -> None:
    streams = Streams()
    viewer = streams.join()
    assert viewer is not None
    for n in range(1000):
        streams.publish(b"state %d;" % n, [b"event %d;" % n])
    told = await viewer.next()
    assert told == b"".join(b"event %d;" % n for n in range(1000 - EVENTS, 1000)) + b"state 999;"


async def test_there_are_no_more_than_so_many() -> None:
    streams = Streams(most=2)
    first, _ = streams.join(), streams.join()
    assert first is not None
    assert streams.join() is None
    streams.leave(first)
    streams.leave(first)
    assert streams.join() is not None


async def test_who_waits_is_told_that_it_is_over() -> None:
    streams = Streams()
    viewer = streams.join()
    assert viewer is not None
    waiting = asyncio.create_task(viewer.next())
    await asyncio.sleep(0)
    streams.close()
    assert await waiting == b"event: end\ndata: {}\n\n"
    assert await viewer.next() is None
    assert streams.join() is None


async def test_what_waits_comes_before_the_end() -> None:
    streams = Streams()
    viewer = streams.join()
    assert viewer is not None
    streams.publish(b"last;")
    streams.close()
    assert await viewer.next() == b"last;event: end\ndata: {}\n\n"
    assert await viewer.next() is None
