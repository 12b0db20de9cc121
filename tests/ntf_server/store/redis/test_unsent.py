"""Queues of a token with a notification that no push held yet: few are in a field, many in a key of their own."""

import random

import pytest
from redis_servers import Server
from redis_stores import How, Nodes, ask, cut, fault

from ntf_server.store.contract import Places
from ntf_server.store.memory import Times
from ntf_server.store.records import Claim, Session
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.script import Script
from ntf_server.testing.store_suite.medium import (
    NOWHERE,
    ROOM,
    acquire,
    activate,
    again,
    delivered,
    found,
    names,
    notify,
    subscribe,
    take,
    take_one,
)
from smp_bridge.ntf import Provider

EVERYWHERE: dict[Provider, Places] = dict.fromkeys(Provider, ROOM)
MANY = [b"%03d" % n for n in range(40)]


async def behind(store: RedisStore, token: bytes) -> int:
    """Queues in the key of its own."""
    shard = store._node.names.shard(token)
    return int(await ask(store, b"ZCARD", shard + b":u:" + token))


async def drained(nodes: Nodes, store: RedisStore) -> list[bytes]:
    """Names of queues in the order in which they go out, each push with what is new in it."""
    out: list[bytes] = []
    while claims := await take(store):
        for claim in claims:
            out += [e.notifier_id for e in claim.entries if not e.sent]
        await store.record(list(map(delivered, claims)))
        await nodes.pass_(0.1, store)
    return out


@pytest.mark.parametrize("twice", [(), ("notify",), ("take",), ("record",)])
async def test_many_go_out_in_the_order_in_which_they_came(
    nodes: Nodes, store: RedisStore, twice: tuple[str, ...]
) -> None:
    token = await activate(store)
    await subscribe(store, token, *MANY)
    session = await acquire(store)
    with fault(store, How.TWICE, *twice):
        for first in range(0, 40, 10):
            await notify(store, session, *MANY[first : first + 10])
        for name in (MANY[3], MANY[30]):  # one that is among the first, one that is not
            await notify(store, session, name)
        assert await behind(store, token.token_id) == 40
        assert await drained(nodes, store) == [n for n in MANY if n not in (MANY[3], MANY[30])] + [MANY[3], MANY[30]]
    assert await behind(store, token.token_id) == 0
    await notify(store, session, MANY[7])
    claim = await take_one(store)
    assert names(claim) == [MANY[37], MANY[38], MANY[39], MANY[3], MANY[30], MANY[7]]


async def test_those_of_many_that_are_deleted_or_over_go_out_no_more(nodes: Nodes) -> None:
    store = await nodes.open(times=Times(message_ttl=200))
    token = await activate(store)
    ids = await subscribe(store, token, *MANY)
    session = await acquire(store)
    await notify(store, session, *MANY[:20])
    await nodes.pass_(150, store)
    await notify(store, session, *MANY[20:])
    for n in (0, 25, 39):
        await store.unsubscribe((await found(store, ids[n])).ref)
    await nodes.pass_(100, store)
    assert await drained(nodes, store) == [MANY[n] for n in range(20, 40) if n not in (25, 39)]
    assert await behind(store, token.token_id) == 0


# --- scripts that end in their middle, and are done again


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("name", ["notify", "take", "record", "park"])
async def test_a_script_that_ends_in_its_middle_is_done_again(nodes: Nodes, name: str, many: bool) -> None:
    """Wherever that is, each notification goes out once, and memory has nothing at the end."""
    store = await nodes.open(shards=2)
    queues = MANY if many else [b"%d" % n for n in range(6)]
    tokens = [await activate(store, n) for n in range(1 if many else 3)]
    for n, token in enumerate(tokens):
        await subscribe(store, token, *queues[n :: len(tokens)])
    session = await acquire(store)
    assert await take(store) == []
    none = dict.fromkeys(Provider, ROOM._replace(each=0))
    cuts = 0
    for commands in range(0, 400, 5 if many else 1):
        with cut(store, name, commands) as happened:
            out: list[bytes] = []
            for places in (EVERYWHERE, NOWHERE, none):
                notified = await notify(store, session, *queues, places=places)
                claims = notified.claims + await take(store)
                while claims:
                    out += [e.notifier_id for c in claims for e in c.entries if not e.sent]
                    await store.record(list(map(delivered, claims)))
                    await nodes.pass_(1, store)
                    claims = await take(store)
                assert sorted(out) == queues, (commands, places)
                out.clear()
        shards = store._node.names.shards
        assert not [token for shard in shards for token in await ask(store, b"HKEYS", shard + b":taken")]
        assert not [lane for shard in shards for lane in await ask(store, b"ZRANGE", shard + b":lanes:AP", 0, -1)]
        cuts += len(happened)
        if not happened:
            break
    assert cuts and not happened


# --- plain tokens


def without_short_ways(store: RedisStore) -> None:
    """Its scripts take no token for a plain one."""
    scripts = store._node._scripts
    for name in ("notify", "take", "record"):
        text, begin = scripts[name].text, "local function plain(status"
        assert text.count(begin) == 1
        scripts[name] = Script(name, text.replace(begin, "local function plain() end\nlocal function _(status"))


async def kept(store: RedisStore, token: bytes) -> dict[bytes, bytes]:
    """Of a token, without what is another's in each store: ids, marks of calls, fences, and what is sealed."""
    node = store._node
    shard, found = node.names.shard(token), await ask(store, b"HGETALL", node.names.token(token))
    fields = dict(zip(found[::2], found[1::2], strict=True))
    out = {name: value for name, value in fields.items() if name in (b"s", b"v", b"k", b"n", b"d", b"p", b"l")}
    out[b"q"] = fields.get(b"q", b"")[8:]
    out[b"out"] = b"%d" % (fields.get(b"q", bytes(8))[:8] != bytes(8))
    out[b"taken"] = b"%d" % await ask(store, b"HEXISTS", shard + b":taken", token)
    out[b"due"] = await ask(store, b"ZSCORE", shard + b":due:AP", token) or b""
    return out | {name: value[8:] for name, value in fields.items() if len(name) > 8}


@pytest.mark.parametrize("seed", range(3))
async def test_the_short_way_does_what_the_long_way_does(server: Server, seed: int) -> None:
    """Whatever comes when, token by token."""
    queues = [[b"%d.%d" % (n, queue) for queue in range(count)] for n, count in enumerate((1, 4, 9))]
    places = (EVERYWHERE, EVERYWHERE, NOWHERE, dict.fromkeys(Provider, ROOM._replace(each=0)))
    both: list[tuple[Nodes, RedisStore, Session, list[bytes], list[Claim]]] = []
    for prefix in ("short", "long"):
        nodes = Nodes(server.url, f"{prefix}{seed}")
        store = await nodes.open(shards=2)
        if prefix == "long":
            without_short_ways(store)
        tokens = [await activate(store, n) for n in range(3)]
        for n, token in enumerate(tokens):
            await subscribe(store, token, *queues[n])
        both.append((nodes, store, await acquire(store), [t.token_id for t in tokens], []))
    rng = random.Random(seed)
    for what in "nrtr" * 25:
        if what != "n" and rng.random() < 0.2:
            continue
        ended, seconds, where = rng.choice("ddddda"), rng.choice((0.01, 1, 5)), rng.choice(places)
        some = [queue for of in queues for queue in rng.sample(of, min(len(of), rng.choice((0, 1, 1, 1, 1, 3))))]
        said = []
        for nodes, store, session, tokens_, claims in both:
            if what == "n" and some:
                claims.extend((await notify(store, session, *some, places=where)).claims)
            elif what == "t":
                claims.extend(await take(store))
            else:
                await store.record([(delivered if ended == "d" else again)(claim) for claim in claims])
                claims.clear()
            await nodes.pass_(seconds, store)
            got = sorted([(e.notifier_id, e.sent) for e in c.entries] for c in claims)
            said.append((got, [await kept(store, token) for token in tokens_]))
        assert said[0] == said[1], (what, ended, some)
    for nodes, *_ in both:
        await nodes.close()
