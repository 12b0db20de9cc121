"""Changes that wait to be asked for."""

import asyncio

from store_world import OTHER_SMP, SMP

from ntf_server.store.changes import Changes, audits
from ntf_server.store.records import Change, ChangeKind, ToAudit

ADDED, REMOVED, AUDIT = ChangeKind.ADDED, ChangeKind.REMOVED, ChangeKind.AUDIT


async def test_what_is_told_twice_before_anybody_asks_is_told_once() -> None:
    changes = Changes()
    changes.tell([Change(ADDED, SMP, (1, 2)), Change(ADDED, SMP, (2, 3)), Change(REMOVED, SMP)])
    changes.tell([Change(AUDIT, OTHER_SMP, (9,)), Change(REMOVED, SMP)])
    stream = aiter(changes)
    assert [await anext(stream) for _ in range(3)] == [
        Change(ADDED, SMP, (1, 2, 3)),
        Change(REMOVED, SMP),
        Change(AUDIT, OTHER_SMP, (9,)),
    ]


async def test_who_waits_hears_at_once() -> None:
    changes = Changes()
    waiting = asyncio.ensure_future(anext(aiter(changes)))
    await asyncio.sleep(0)
    changes.tell([])
    await asyncio.sleep(0)
    assert not waiting.done()
    changes.tell([Change(REMOVED, SMP)])
    assert await waiting == Change(REMOVED, SMP)


async def test_a_reader_that_was_cancelled_takes_nothing_along() -> None:
    changes = Changes()
    waiting = asyncio.ensure_future(anext(aiter(changes)))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    changes.tell([Change(REMOVED, SMP)])
    assert await anext(aiter(changes)) == Change(REMOVED, SMP)


def test_what_is_to_be_audited_is_told_of_each_server_once() -> None:
    some = [ToAudit(1, SMP, True), ToAudit(2, OTHER_SMP, False), ToAudit(3, SMP, False)]
    assert audits(some) == [Change(AUDIT, SMP, (1, 3)), Change(AUDIT, OTHER_SMP, (2,))]
    assert audits([]) == []
