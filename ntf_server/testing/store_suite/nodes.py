"""Two nodes on one medium: what one holds the other leaves alone, and takes over when it is gone."""

import asyncio
from dataclasses import replace

from ntf_server.store.contract import FencedError, Store
from ntf_server.store.records import ChangeKind, Confirmed, PushKind
from ntf_server.testing.store_suite.medium import (
    ROOM,
    SMP,
    Bench,
    acquire,
    activate,
    delivered,
    found,
    new_token,
    notify,
    record,
    register,
    stamp,
    subscribe,
    take,
    take_one,
)
from smp_bridge.ntf import SubscriptionStatus


async def _settle(bench: Bench, *nodes: Store) -> None:
    """Time for them to share what there is."""
    for _ in range(10):
        bench.clock.pass_(2.5)
        for node in nodes:
            await node.servers()


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
    claims = [claim for node in (second, first, second) for claim in await take(node)]
    assert [[e.notifier_id for e in c.entries if not e.sent] for c in claims] == [[b"2"]]


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


async def who_can_take_it_is_told_of_what_is_due(bench: Bench) -> None:
    """Whichever of them it came to."""
    first, second = await bench.open(), await bench.open()
    tokens = [await activate(first, number) for number in range(30)]
    for number, token in enumerate(tokens):
        await subscribe(first, token, b"%d" % number)
    await _settle(bench, first, second)
    told: set[Store] = set()
    for node in (first, second):
        node.watch(lambda provider, _, node=node: told.add(node))  # type: ignore[misc]
    session = await acquire(first)
    left = {b"%d" % number for number in range(30)}
    await notify(first, session, *left)
    async with asyncio.timeout(5):
        while left:
            for node in list(told):
                told.discard(node)
                for claim in await take(node):
                    left -= {entry.notifier_id for entry in claim.entries}
            await asyncio.sleep(0.01)


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


async def who_does_not_hold_a_server_knows_what_is_confirmed_there(bench: Bench) -> None:
    """As long as the holder says so, and lives."""
    first, second = await bench.open(), await bench.open()
    [subscription_id] = await subscribe(first, await activate(first, 1), b"queue")
    session = await acquire(first)
    assert not (await found(second, subscription_id)).elsewhere
    await first.announce(session, whole=True)
    assert (await found(second, subscription_id)).elsewhere
    assert not (await found(first, subscription_id)).elsewhere
    await first.announce(session, whole=False)
    assert not (await found(second, subscription_id)).elsewhere
    await first.announce(session, whole=True)
    bench.clock.pass_(60)
    assert not (await found(second, subscription_id)).elsewhere
    await acquire(second)
    assert not (await found(first, subscription_id)).elsewhere


async def who_takes_leave_has_no_share(bench: Bench) -> None:
    """What is out stays its own until it has ended; all else is the other's, and stays so."""
    first, second = await bench.open(), await bench.open()
    token = await activate(first, 1)
    await subscribe(first, token, b"1")
    late = await register(first, new_token(2))
    claim = await take_one(first)
    held = await acquire(first)
    await first.leave()
    share = await first.share([held])
    assert (share.take, share.give) == ([], [held])
    await first.release(held)
    await record(first, delivered(claim))
    for _ in range(3):  # it may just be looking at what it had
        bench.clock.pass_(1)
        if not await first.leave():
            break
    assert await first.leave() == 0
    bench.clock.pass_(2.5)
    new = await acquire(second)
    await notify(second, new, b"1")
    assert await take(first) == []
    anew = await take_one(second)
    assert (claim.token, anew.token) == (late.ref, token.ref)
    assert (await first.share([])).take == []


async def servers_are_shared(bench: Bench) -> None:
    """Each is one node's to take; what a dead node had the other takes."""
    first, second = await bench.open(), await bench.open()
    token = await activate(first, 1)
    servers = [replace(SMP, key_hash=bytes([n]) * 32) for n in range(12)]
    for server in servers:
        await subscribe(first, token, b"queue", server=server)
    await _settle(bench, first, second)
    shares = [(await node.share([])).take for node in (first, second)]
    assert {server.key_hash for share in shares for server in share} == {server.key_hash for server in servers}
    held = [await acquire(first, server) for server in servers]
    give = (await first.share(held)).give
    assert all(session in held for session in give)
    bench.nodes.remove(first)
    await bench.medium.kill(first)
    for _ in range(10):
        bench.clock.pass_(2.5)
        await second.servers()
    assert len((await second.share([])).take) == len(servers)
