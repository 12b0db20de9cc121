"""Two nodes on one medium: what one holds the other leaves alone, and takes over when it is gone."""

import asyncio

from ntf_server.store.contract import FencedError
from ntf_server.store.records import ChangeKind, Confirmed, PushKind
from ntf_server.testing.store_suite.medium import (
    ROOM,
    Bench,
    acquire,
    activate,
    delivered,
    found,
    names,
    new_token,
    notify,
    record,
    register,
    stamp,
    subscribe,
    take,
    take_one,
)
from smp_bridge.ntf import Provider, SubscriptionStatus


async def one_node_speaks_for_a_server(bench: Bench) -> None:
    """None for the other, until it is released, or its holder is gone for long."""
    first, second = await bench.open(), await bench.open()
    session = await acquire(first)
    assert await second.acquire(session.server) is None
    await first.release(session)
    taken = await acquire(second)
    assert taken.fence > session.fence
    bench.clock.pass_(60)
    third = await acquire(first)
    assert third.fence > taken.fence
    assert await second.renew([taken]) == [taken]
    second = await bench.reopen(second)
    bench.clock.pass_(60)
    assert (await acquire(second)).fence > third.fence


async def a_session_that_is_renewed_is_kept(bench: Bench) -> None:
    """However long."""
    first, second = await bench.open(), await bench.open()
    session = await acquire(first)
    for _ in range(20):
        bench.clock.pass_(3)
        assert await first.renew([session]) == []
        assert await second.acquire(session.server) is None


async def a_node_that_lost_a_server_is_fenced(bench: Bench) -> None:
    """It ends nothing and stores nothing any more."""
    first, second = await bench.open(), await bench.open()
    [subscription_id] = await subscribe(first, await activate(first, 1), b"queue")
    old = await acquire(first)
    block = stamp(first, old, b"queue")
    bench.clock.pass_(60)
    new = await acquire(second)
    await second.confirm(new, [Confirmed((await found(second, subscription_id)).ref, SubscriptionStatus.ACTIVE)])
    for call in (
        lambda: first.end(old, [b"queue"], SubscriptionStatus.END),
        lambda: first.notify(old, block, {}),
        lambda: first.page(old, None, 10),
    ):
        try:
            await call()
        except FencedError:
            continue
        raise AssertionError("an old session was served")
    assert (await found(first, subscription_id)).status is SubscriptionStatus.ACTIVE


async def one_node_pushes_to_a_token(bench: Bench) -> None:
    """A claim is one in both; what comes meanwhile is due when it has ended."""
    first, second = await bench.open(), await bench.open()
    token = await activate(first, 1)
    await subscribe(first, token, b"1", b"2")
    session = await acquire(first)
    await notify(first, session, b"1")
    claim = await take_one(first)
    assert await take(second) == []
    await notify(first, session, b"2")
    assert await take(second) == []
    await record(first, delivered(claim))
    bench.clock.pass_(1)
    claims = await take(second)
    assert [[e.notifier_id for e in c.entries if not e.sent] for c in claims] == [[b"2"]]
    assert await take(first) == []


async def takes_of_two_nodes_share(bench: Bench) -> None:
    """Each token is handed out once."""
    first, second = await bench.open(), await bench.open()
    for n in range(60):
        await register(first, new_token(n))
    turns = [take(node, places=ROOM._replace(total=7)) for node in (first, second) * 6]
    claims = [c for taken in await asyncio.gather(*turns) for c in taken]
    claims += await take(first)
    assert len(claims) == len({c.token for c in claims}) == 60


async def claims_of_a_dead_node_are_given_again(bench: Bench) -> None:
    """After a while, by the other; what the dead one still says is refused."""
    first, second = await bench.open(), await bench.open()
    token = await register(first, new_token(1))
    claim = await take_one(first)
    bench.nodes.remove(first)
    await bench.medium.kill(first)
    bench.clock.pass_(60)
    anew = await take_one(second)
    assert (anew.token, anew.kind) == (token.ref, PushKind.VERIFICATION)
    assert await second.record([delivered(claim)]) == 1
    await record(second, delivered(anew))


async def both_are_told_of_what_is_due(bench: Bench) -> None:
    """A node pushes what came to the other."""
    first, second = await bench.open(), await bench.open()
    told = asyncio.Event()
    second.watch(lambda provider, _: told.set() if provider is Provider.APNS else None)
    await subscribe(first, await activate(first, 1), b"queue")
    await notify(first, await acquire(first), b"queue")
    await asyncio.wait_for(told.wait(), 5)
    assert names(await take_one(second)) == [b"queue"]


async def changes_reach_the_holder(bench: Bench) -> None:
    """SNEW at one node is subscribed by the other, if that holds the server."""
    first, second = await bench.open(), await bench.open()
    token = await activate(first, 1)
    session = await acquire(second)
    stream = aiter(second.changes())
    upcoming = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.05)
    [subscription_id] = await subscribe(first, token, b"queue")
    change = await asyncio.wait_for(upcoming, 5)
    assert (change.kind, change.server) == (ChangeKind.ADDED, session.server)
    [wanted] = await second.load(session, change.refs)
    assert wanted.ref == (await found(second, subscription_id)).ref
