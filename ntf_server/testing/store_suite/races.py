"""Commands that come together: whatever their order, the end is one that some order of theirs leads to."""

import asyncio
import random

from ntf_server.store.contract import Store
from ntf_server.store.records import Added, Claim, Confirmed, NewToken, Outcome, PushKind, Replacement, Token
from ntf_server.testing.store_suite.medium import (
    ROOM,
    SMP,
    Bench,
    acquire,
    activate,
    dead,
    delivered,
    device,
    drain,
    found,
    ids_hash,
    new_queue,
    new_token,
    pages,
    register,
    stamp,
    status,
    subscribe,
    take,
    take_one,
    tend,
)
from smp_bridge.ntf import Provider, SubscriptionStatus, TokenStatus

_ACTIVE = SubscriptionStatus.ACTIVE


async def twins_are_one(bench: Bench) -> None:
    """TNEW of one device, many times at once: one token, one claim."""
    store = await bench.open()
    news = [new_token(1) for _ in range(10)]
    tokens = await asyncio.gather(*map(store.register, news))
    assert len({t.token_id for t in tokens if t is not None}) == 1
    assert None not in tokens
    claim = await take_one(store)
    token = tokens[0]
    assert token is not None
    assert await store.verify(token.ref, claim.code)


async def one_client_key_wins(bench: Bench) -> None:
    """TNEW of one pair with several client keys: the first is there, the others are refused."""
    store = await bench.open()
    base = new_token(1)
    news = [
        NewToken(bytes([n]) * 24, base.device, base.verify_key, bytes([n]) * 32, *(bytes([n]) * 32,) * 3)
        for n in range(5)
    ]
    tokens = await asyncio.gather(*map(store.register, news))
    [winner] = [t for t in tokens if t is not None]
    claim = await take_one(store)
    assert winner.token_id[:1] == claim.secret[:1] == claim.code[:1]


async def one_verification_wins(bench: Bench) -> None:
    """TVFY of several registrations of one device token: one is left, ACTIVE."""
    store = await bench.open()
    news = [new_token(1, key=b"key %d" % n) for n in range(4)]
    tokens = [await register(store, new) for new in news]
    verified = await asyncio.gather(*(store.verify(t.ref, n.code) for t, n in zip(tokens, news, strict=True)))
    left = [t for t in tokens if await store.find_token(t.token_id)]
    assert len(left) == 1
    assert await status(store, left[0]) == (TokenStatus.ACTIVE, None)
    assert verified[tokens.index(left[0])]


async def verifying_against_replacing(bench: Bench) -> None:
    """TVFY and TRPL at once: the old code never makes the new device token ACTIVE."""
    store = await bench.open()
    for n in range(10):
        new = new_token(n)
        token = await register(store, new)
        both = [store.verify(token.ref, new.code), store.replace(token.ref, Replacement(device(100 + n), b"c" * 32))]
        if n % 2:
            both.reverse()
        await asyncio.gather(*both)
        assert await status(store, token) == (TokenStatus.REGISTERED, None)
        assert not await store.verify(token.ref, new.code)
    claims = await drain(bench, store)
    assert sorted(c.device.token for c in claims) == sorted(device(100 + n).token for n in range(10))


async def two_replace_into_one_pair(bench: Bench) -> None:
    """TRPL of two registrations with one verify key onto one device token: one of them."""
    store = await bench.open()
    tokens = [await register(store, new_token(n, key=b"one key")) for n in range(4)]
    done = await asyncio.gather(*(store.replace(t.ref, Replacement(device(9), b"c" * 32)) for t in tokens))
    assert sum(done) == 1
    claims = {c.token: c.device for c in await take(store)}
    assert [claims[t.ref] == device(9) for t in tokens] == list(done)


async def one_queue_has_one_token(bench: Bench) -> None:
    """SNEW of one queue by several tokens at once: one has it; by one token several times: one subscription."""
    store = await bench.open()
    tokens = [await activate(store, n) for n in range(4)]
    results = await asyncio.gather(*(store.subscribe(t.ref, new_queue(b"queue")) for t in tokens))
    assert sum(isinstance(r, Added) and r.created for r in results) == 1
    assert sum(r is None for r in results) == 3
    again = await asyncio.gather(*(store.subscribe(tokens[0].ref, new_queue(b"other")) for _ in range(5)))
    assert sum(isinstance(r, Added) and r.created for r in again) == 1
    assert len({r.subscription_id for r in again if isinstance(r, Added)}) == 1
    assert await store.subscription_count() == 2


async def deleting_against_subscribing(bench: Bench) -> None:
    """TDEL and SNEW at once: no subscription without its token is left."""
    store = await bench.open()
    for n in range(10):
        token = await activate(store, n)
        todo = [store.subscribe(token.ref, new_queue(b"%d.%d" % (n, i))) for i in range(4)]
        await asyncio.gather(*todo[:2], store.delete_token(token.ref), *todo[2:])
    await tend(bench, store)
    assert await store.subscription_count() == 0
    assert not await store.is_wanted(SMP)
    assert await pages(store, await acquire(store)) == []


async def deleting_while_answers_come(bench: Bench) -> None:
    """SDEL, END and answers at once: count and hash are those of the rows that are left."""
    store = await bench.open()
    rng = random.Random(1)
    token = await activate(store, 1)
    session = await acquire(store)
    await store.begin(session, b"service")
    left = {}
    for n in range(30):
        name = b"%d" % n
        [subscription_id] = await subscribe(store, token, name)
        ref = (await found(store, subscription_id)).ref
        todo = [
            store.confirm(session, [Confirmed(ref, _ACTIVE, associated=True)]),
            store.end(session, [name], SubscriptionStatus.END) if n % 3 else store.unsubscribe(ref),
        ]
        rng.shuffle(todo)
        await asyncio.gather(*todo)
        pair = await store.find_subscription(subscription_id)
        if pair is not None:
            assert pair[1].status is SubscriptionStatus.END
            left[name] = pair[1]
    state = await store.service_state(session)
    released = [b"%d" % n for n in range(0, 30, 3)]
    assert state.associated == 0
    assert state.released <= 10
    if state.released == 10:
        assert state.ids_hash == ids_hash(released)
    assert await pages(store, session) == []


async def many_blocks_at_once(bench: Bench) -> None:
    """Notifications of all tokens in parallel, with places: no token is handed out twice, no notification lost."""
    store = await bench.open()
    count, rounds = 20, 10
    for n in range(count):
        await subscribe(store, await activate(store, n), b"%d.a" % n, b"%d.b" % n)
    session = await acquire(store)
    newest: dict[bytes, int] = {}
    held: dict[object, Claim] = {}
    seen: dict[bytes, int] = {}
    rng = random.Random(1)

    async def arrive() -> list[Claim]:
        block = stamp(store, session, *(b"%d.%s" % (rng.randrange(count), rng.choice((b"a", b"b"))) for _ in range(5)))
        newest.update((n.notifier_id, n.seq) for n in block)
        return (await store.notify(session, block, {Provider.APNS: ROOM._replace(total=3)})).claims

    async def push() -> list[Claim]:
        return (await store.take(Provider.APNS, ROOM._replace(total=4))).claims

    async def end() -> list[Claim]:
        claims = list(held.values())[:5]
        for claim in claims:
            del held[claim.token]
        assert await store.record([delivered(c) for c in claims]) == 0
        for claim in claims:
            seen.update((e.notifier_id, max(e.seq, seen.get(e.notifier_id, 0))) for e in claim.entries)
        return []

    for _ in range(rounds):
        for claims in await asyncio.gather(*(arrive() for _ in range(5)), push(), end(), push(), arrive()):
            for claim in claims:
                assert claim.token not in held
                held[claim.token] = claim
        bench.clock.pass_(0.05)
    while held:
        await end()
    for claim in await drain(bench, store):
        seen.update((e.notifier_id, max(e.seq, seen.get(e.notifier_id, 0))) for e in claim.entries)
    assert seen == newest


async def takes_at_once_share(bench: Bench) -> None:
    """Two takers of one provider get different tokens."""
    store = await bench.open()
    for n in range(40):
        await register(store, new_token(n))
    taken = await asyncio.gather(*(take(store, places=ROOM._replace(total=15)) for _ in range(4)))
    refs = [c.token for claims in taken for c in claims]
    assert len(refs) == len(set(refs))
    refs += [c.token for c in await take(store)]
    assert len(set(refs)) == 40


async def outcomes_against_commands(bench: Bench) -> None:
    """What came of a push, TRPL, TDEL and TNEW at once: no outcome of the old registration is one of the new."""
    store = await bench.open()
    for n in range(12):
        new = new_token(n)
        token = await register(store, new)
        claim = await take_one(store)
        outcome = (delivered, dead)[n % 2](claim)
        todo = [store.record([outcome]), _change(store, token, n)]
        if n % 4 < 2:
            todo.reverse()
        await asyncio.gather(*todo)
        if n % 3 == 2:
            assert await store.find_token(token.token_id) is None
        elif n % 3 == 1:
            assert await status(store, token) == (TokenStatus.REGISTERED, None)
        claims = await drain(bench, store)
        if n % 3 == 1:
            assert [(c.kind, c.device) for c in claims] == [(PushKind.VERIFICATION, device(100 + n))]
        assert len(claims) == (n % 3 != 2)


async def _change(store: Store, token: Token, n: int) -> int:
    if n % 3 == 0:
        await store.register(new_token(n))
    elif n % 3 == 1:
        assert await store.replace(token.ref, Replacement(device(100 + n), b"c" * 32))
    else:
        await store.delete_token(token.ref)
    return 0


async def outcomes_of_one_claim_at_once(bench: Bench) -> None:
    """One is recorded, the others are refused."""
    store = await bench.open()
    await register(store, new_token(1))
    claim = await take_one(store)
    outcomes: list[Outcome] = [delivered(claim), delivered(claim), delivered(claim)]
    assert sum(await asyncio.gather(*(store.record([o]) for o in outcomes))) == 2
