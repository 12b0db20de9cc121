"""Every script is done twice: what the second time changes, or answers otherwise, is in a table with the reason.

A timed-out script is repeated, though it may have been done, or may yet be. So one that is not in the tables does
nothing the second time, and says the same.
"""

import re
from typing import Final

from moving import MARK, copied, mixed
from redis_stores import MASTER, Nodes, ask, bucket, keep
from redis_twice import Twice

from ntf_server.admission.budgets import MAX_DELAY, Rate
from ntf_server.store.ledger import Charge, Revision
from ntf_server.store.records import Confirmed, Replacement, ServiceCertificate
from ntf_server.store.redis import buckets, tokens
from ntf_server.store.redis.call import Call
from ntf_server.store.redis.deliveries import park
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.portable import PortableRedis
from ntf_server.store.redis.quarantine import set_aside
from ntf_server.store.redis.script import Script, scripts
from ntf_server.testing.store_suite.medium import (
    DAY,
    ROOM,
    SMP,
    Bench,
    acquire,
    activate,
    again,
    device,
    drain,
    found,
    new_queue,
    new_token,
    pages,
    record,
    register,
    subscribe,
    take,
    tend,
)
from smp_bridge.ntf import InvalidReason, Provider, SubscriptionStatus, TokenStatus

ONE = b"\xc0\x00\x02\x01"
TEN = Rate.parse("10 + 10/s").plain
CHARGE = Charge("registrations", 8, ((ONE, 1),), TEN, TEN, TEN)

WRITES: Final = re.compile(r"call\('(DEL|HDEL|HINCR|HSET|INCR|PEXPIRE|SADD|SET|SREM|XADD|ZADD|ZREM)")
MAY_CHANGE: Final = {
    "acquire": "the fence grows: the first one is nobody's",
    "enlist": "a number is passed over",
    "give_up": "as many again are given up, as all are to be",
    "hold": "the fence of a shard that is taken grows: the first one is nobody's",
    "publish": "it is told twice",
    "reassociate": "the generation grows: in the first one nothing holds either",
    "revive": "it counts as registered once more: what was handed out in between is pushed once more",
    "spend": "it delays, by no more than what is asked for at once",
}
MAY_ANSWER: Final = {
    "acquire": "the fence that counts",
    "apply": "that it was done, and what there is",
    "begin": "that the service is the one of before, which it is by now",
    "damage": "how many were not set aside before: none",
    "drop": "that there is none: what leads to it leads nowhere",
    "enlist": "another number",
    "expire": "how much expired since: nothing",
    "hold": "the fence that counts",
    "invalidate": "how many more: none",
    "lost": "who gets a check that has none: nobody",
    "make": "that there is a store: it is looked at",
    "mark_checks": "how many more: none",
    "notify": "that what came is there already",
    "park": "lanes of what is due since: a look finds the others",
    "prove": "that it is known",
    "publish": "another id, which nobody reads",
    "reassociate": "the generation that counts",
    "record": "that the claims count no more: they were recorded",
    "resubscribe": "that the record is another one by now: it is looked at",
    "set_aside": "that it was set aside before",
    "set_vapid_key": "that the record is another one by now",
    "spend": "longer delays",
    "subscribe": "that the queue is there: whose it is is looked at",
    "take": "without those that had nothing to be pushed",
    "unsubscribe": "that it is not there: what leads to it leads nowhere",
    "withdraw": "what was withdrawn since: nothing",
}


async def test_each_may_be_done_twice(nodes: Nodes) -> None:
    """A new script that writes is to be in `use`, or in what that calls."""
    twice = Twice()
    store = await nodes.open(shards=4)
    with twice.of(store._node.database):
        await mixed(store)
        await moved(nodes, twice)
        await use(nodes, store)
        await store.close()
    nodes._open.clear()
    assert {name for name in scripts() if WRITES.search(Script.load(name).text)} <= twice.done
    assert {name for name, changed in twice.changed.items() if changed} == MAY_CHANGE.keys()
    assert twice.answered.keys() == MAY_ANSWER.keys()


async def of_tokens(nodes: Nodes, store: RedisStore) -> None:
    """Scripts of shards."""
    node, bench = store._node, Bench(None, nodes.clock)  # type: ignore[arg-type]
    new = new_token(60)
    token = await register(store, new)
    await store.register(new)
    await store.put_off({token.ref: 60.0})
    nodes.clock.pass_(61)
    for claim in await take(store):
        await record(store, again(claim, 5.0))
    nodes.clock.pass_(6)
    await drain(bench, store)
    assert await store.verify(token.ref, new.code)
    await store.replace(token.ref, Replacement(device(61), b"c" * 32))
    twin = await register(store, new_token(61, key=b"another key"))
    await store.put_off({twin.ref: 60.0})
    await store.put_off({twin.ref: None})
    for number in range(70, 73):
        made = await activate(store, number)
        await store.set_period(made.ref, 30)
    web = await activate(store, 80, Provider.WEB_PUSH)
    await store.set_vapid_key(web.ref, b"another!")
    await store.census(None, 10)
    await node.run("survey", [node.names.shards[0]], b"", 10)
    await store.backlog(Provider.APNS)
    await store.take(Provider.WEB_PUSH, ROOM)
    nodes.clock.pass_(DAY / 2)
    await keep(store)
    await store.mark_checks(10)
    await node.run_on("hasten", [node.ahead, 1000, 6000, b"AP"], {shard: [] for shard in node.fences})
    await node.run_on("heads", [node.ahead, b"AP"], {shard: [] for shard in node.fences})
    await take(store)
    await park(node, list(store._state.claims))
    node.strand()
    await keep(store)
    for _ in range(2):
        await tokens.withdraw(node, node.names.shards[0], node.held[0])
    store.seen(made)
    [shard] = [node.names.shard(made.token_id)]
    await node.run("drop_notification", [shard], node.ahead, made.token_id, b"queue", b"", 0)
    await set_aside(node, [made.token_id])
    await node.run("leave", [shard], made.token_id, b"queue")
    await store.invalidate(TokenStatus.ACTIVE, InvalidReason.BAD, None, 100)
    await store.delete_token(made.ref)
    await node.run("prepare", [shard], node.ahead, made.token_id, b"attempt!", b"AP", b"record", b"code", 0, b"")
    nodes.clock.pass_(100)
    await keep(store)
    await tokens.withdraw(node, shard, node.fence(shard))
    node._unheard = dict.fromkeys(range(len(node.names.shards)), 5 * 24 * 3600)
    for number in list(node._unheard):
        await node._hear(number, node.ask_some)
    nodes.clock.pass_(1000)
    await node.time.begin(b"a start!")


async def moved(nodes: Nodes, twice: Twice) -> None:
    """Those that move a store."""
    source = await PortableRedis.open(await nodes.database(), MASTER, shards=None, make=False)
    other = await Nodes(nodes._url, "copy").database()
    with twice.of(source._database), twice.of(other):
        await other.run(Call(Script.load("make"), [b"copy:{g}:other"], (b"id", b"1")))
        copy = await PortableRedis.open(other, MASTER, shards=None, make=True)
        await copy.begin(MARK)
        await copied(source, copy)
        await copy._own(60.0)
        await copy.end(0)
    await source.close()
    await copy.close()


async def use(nodes: Nodes, store: RedisStore) -> None:
    """What `mixed` does not do."""
    node, bench = store._node, Bench(None, nodes.clock)  # type: ignore[arg-type]
    await of_tokens(nodes, store)
    session = await acquire(store)
    await store.begin(session, b"service")
    await store.reassociate(session)
    await store.set_released(session, 3, bytes(16))
    await store.announce(session, whole=True)
    await store.prove(session, "192.0.2.0/24")
    await store.disprove(SMP)
    await store.service_certificate(SMP, lambda: ServiceCertificate(b"chain", b"key"))
    assert await store.renew([session]) == []
    await store.share([])
    token = await activate(store, 50)
    ids = await subscribe(store, token, *(b"z%d" % n for n in range(9)))
    session = await acquire(store)
    await store.begin(session, b"service")
    await store.standing(SMP)
    wanted = await pages(store, session, 20)
    await store.load(session, [w.ref for w in wanted])
    active = SubscriptionStatus.ACTIVE
    await store.confirm(session, [Confirmed(w.ref, active, associated=True) for w in wanted])
    assert await store.end(session, [b"z0"], SubscriptionStatus.END) == 1
    assert await buckets.take_back(node, server_id(SMP))
    assert await store.end(session, [b"z0"], SubscriptionStatus.DELETED) == 1
    again_ = new_queue(b"z0")
    assert await store.subscribe(token.ref, again_)
    await store.to_audit(None, 10, 60)
    await node.run("tally", [bucket(store, b"z1")], 0, 10, 1)
    await store.mark_lost(session, None, 10, 0)
    found_ = await found(store, ids[3])
    await store.unsubscribe(found_.ref)
    await ask(store, b"HSET", bucket(store, b"z4") + b":q", b"z4", b"cut")
    await store.page(session, None, 20, associated=True)
    await store.give_up(session, "nobody is there", 2)
    await store.begin(session, b"another service")
    await store.release(session)
    nodes.clock.pass_(2 * DAY)
    store.seen(token)
    await tend(bench, store)
    await store.delete_token(token.ref)
    nodes.clock.pass_(9 * DAY)
    await tend(bench, store)
    nodes.clock.pass_(9 * DAY)
    await tend(bench, store)
    node.held.clear()
    await node.look()
    await store.ledger.spend([CHARGE], MAX_DELAY)
    await store.ledger.revise(bytes(16), lambda _value, _now: Revision(b"1", 60.0, None))
