"""Subscriptions of tokens in the Redis store.

A queue is a token's (in the token's shard), has its bucket listed by its SMP server (in the server's slot), is claimed
in that (which has a slot of its own), and is found by its subscription id (in a fourth), in this order: what a token
has without a claim counts for nothing, what is claimed by a token that is gone is anybody's.
"""

import asyncio
import hmac
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, Final

from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.records import (
    Added,
    Change,
    ChangeKind,
    LimitReached,
    Limits,
    NewSubscription,
    Removed,
    Subscription,
    Token,
)
from ntf_server.store.redis.buckets import are_wanted, bucket_of, is_wanted
from ntf_server.store.redis.changes import tell
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.node import Node
from ntf_server.store.redis.rows import (
    FIND,
    HEAD,
    NUMBERS,
    WANTED,
    Cursor,
    DamagedError,
    Queue,
    Row,
    address,
    owner,
    queue,
    row,
    subscription_record,
    token_record,
)
from ntf_server.store.sealing import NOTIFIER_KEY, SealingError
from smp_bridge.ntf import SubscriptionStatus
from smp_bridge.service import ids_hash

_TRIES: Final = 20  # of a queue that others change at the same time
CUT_OFF: Final = 60.0  # seconds after which a command that began is over, whatever became of it
_SETTLED: Final = 100  # queues at once
_GONE, _MAY, _TOO_MANY = 0, 1, 2
_THERE, _MADE = 0, 1
_ACTIVE: Final = NUMBERS[SubscriptionStatus.ACTIVE]


async def subscribe(node: Node, token: bytes, new: NewSubscription, limits: Limits) -> Added | LimitReached | None:
    """See `Store.subscribe`.

    How many a server has its buckets are asked, before the queue is claimed: so many may be too many as there are
    commands under way for it together.
    """
    ref = Queue(server_id(new.server), new.notifier_id)
    number, shard = node.names.bucket_number(new.notifier_id), node.names.shard(token)
    server, bucket = node.names.server(ref.server), node.names.bucket(ref.server, number)
    for _ in range(_TRIES):
        may = await node.run("join", [shard], node.ahead, token, ref.packed, limits.per_token)
        if may == _GONE:
            return None
        if may == _TOO_MANY:
            return LimitReached.TOKEN
        encoded = new.server.encode()
        sealed = node.state.sealer.seal(new.notifier_key, NOTIFIER_KEY + new.subscription_id)
        plain = new.server.plain.encode()
        made = Row(token, new.subscription_id, encoded, sealed)
        await node.know(new.server)
        records = (made.packed, made._replace(spelling=b"").packed)
        enlisted = await node.run("enlist", [server], node.ahead, number, plain)
        may = not limits.per_server or (await is_wanted(node, ref.server))[1] < limits.per_server
        args = (node.ahead, new.notifier_id, *records, encoded, "1" if may else "", *enlisted)
        what, *there = await node.run("subscribe", [bucket], *args)
        if what == _MADE:
            return await _made(node, token, ref, new)
        if what != _THERE:
            await node.run("leave", [shard], token, ref.packed)
            return LimitReached.SERVER
        record, kept_address = there
        spelled = made._replace(spelling=b"" if encoded == kept_address else encoded)
        with suppress(_ChangedError):
            return await _there(node, spelled, ref, new, record)
    raise StoreUnavailableError("a queue is changed by others all the time")


class _ChangedError(Exception):
    """It is another by now."""


async def _made(node: Node, token: bytes, ref: Queue, new: NewSubscription) -> Added | None:
    if not await _find_by(node, new.subscription_id, ref, token):
        return None
    await tell(node.database, node.names, Change(ChangeKind.ADDED, new.server, (ref,)))
    return Added(new.subscription_id, created=True)


async def _find_by(node: Node, subscription_id: bytes, ref: Queue, token: bytes) -> bool:
    """Have the queue found by its id; False: its token was deleted meanwhile, and with it the subscription."""
    index = node.names.subscription(subscription_id)
    await node.database.command(b"HSET", index, subscription_id, ref.packed, key=index)
    there = bool(await node.run("join", [node.names.shard(token)], node.ahead, token, ref.packed, 0))
    if not there:
        await remove(node, [ref], token)
    return there


async def _there(node: Node, made: Row, ref: Queue, new: NewSubscription, record: bytes) -> Added | None:
    """The queue is subscribed already: by this token, with this key, or not for us. Raises _ChangedError."""
    token, spelling = made.token, made.spelling
    shard = node.names.shard(token)
    try:
        kept = row(record)
    except DamagedError:  # it is of no use to anybody
        await remove(node, [ref], owner(record) or token)
        raise _ChangedError from None
    if kept.token != token:
        if await node.exists(kept.token):
            await node.run("leave", [shard], token, ref.packed)
            return None
        await remove(node, [ref], kept.token)  # its token is gone, and it only was not cleared yet
        raise _ChangedError
    if not _is_same_key(node, kept, new.notifier_key):
        return None
    status, damaged, *_ = HEAD.unpack_from(record)
    anew = status > WANTED or bool(damaged)
    if anew or kept.spelling != spelling:
        sealer = node.state.sealer
        key = sealer.seal(new.notifier_key, NOTIFIER_KEY + kept.subscription_id) if anew else kept.key
        changed = kept._replace(spelling=spelling, key=key)
        args = (ref.notifier_id, record, changed.packed, "1" if anew else "")
        if not await node.run("resubscribe", [bucket_of(node, ref)], *args):
            raise _ChangedError
    if not await _find_by(node, kept.subscription_id, ref, token):
        return None
    if anew or status != _ACTIVE:  # whoever made it may have been cut off before that was told
        await tell(node.database, node.names, Change(ChangeKind.ADDED, new.server, (ref,)))
    return Added(kept.subscription_id, created=False)


def _is_same_key(node: Node, kept: Row, given: bytes) -> bool:
    """What cannot be read is no reason to refuse: the key that is given takes its place."""
    try:
        key = node.state.sealer.open(kept.key, NOTIFIER_KEY + kept.subscription_id)
    except SealingError:
        return True
    return hmac.compare_digest(key, given[: len(key)])


async def find(node: Node, subscription_id: bytes) -> tuple[Token, Subscription] | None:
    """See `Store.find_subscription`. Raises DamagedError."""
    index = node.names.subscription(subscription_id)
    packed = await node.database.command(b"HGET", index, subscription_id, key=index, writes=False)
    if packed is None:
        return None
    ref = queue(packed)
    calls = [
        node.call("find", [bucket_of(node, ref)], ref.notifier_id),
        node.call("whole", [node.names.server(ref.server)], node.ahead, node.id),
    ]
    (record, error, server), (generation, elsewhere) = await node.database.run_all(calls)
    if record is None:
        return None
    kept = row(record)
    if kept.subscription_id != subscription_id:
        return None
    token = token_record(kept.token, await node.fields(kept.token, FIND))
    if token is None:
        return None
    number = node.names.bucket_number(ref.notifier_id)
    return token, subscription_record(ref, record, error, generation, server, bucket=number, elsewhere=bool(elsewhere))


async def _find(node: Node, ref: Queue) -> Any:
    """Record, error, the server's address."""
    return await node.run("find", [bucket_of(node, ref)], ref.notifier_id)


async def remove(node: Node, refs: Sequence[Queue], token: bytes) -> None:
    """Delete subscriptions of a token with their notifications."""
    services = await _services(node, {ref.server for ref in refs})
    calls = [
        node.call(
            "unsubscribe",
            [bucket_of(node, ref)],
            ref.notifier_id,
            ids_hash([ref.notifier_id]),
            token,
            *services[ref.server],
        )
        for ref in refs
    ]
    answers = await node.database.run_all(calls)
    removed: defaultdict[bytes, list[Removed]] = defaultdict(list)
    for ref, answer in zip(refs, answers, strict=True):
        if answer is None:
            continue
        record, associated, server = answer
        status, _, generation, number, _ = HEAD.unpack_from(record.ljust(HEAD.size, b"\0"))
        with suppress(DamagedError):  # then what leads to it leads nowhere
            subscription_id = row(record).subscription_id
            index = node.names.subscription(subscription_id)
            await node.database.command(b"HDEL", index, subscription_id, key=index)
        if status <= WANTED:
            cursor = Cursor(node.names.bucket_number(ref.notifier_id), generation, int(number))
            removed[server].append(Removed(ref, status == _ACTIVE, bool(associated), cursor))
    await node.run("leave", [node.names.shard(token)], token, *(r.packed for r in refs))
    for server, items in removed.items():
        await tell(node.database, node.names, Change(ChangeKind.REMOVED, address(server), removed=tuple(items)))


async def _services(node: Node, servers: Collection[bytes]) -> dict[bytes, list[bytes]]:
    """Of servers: generation of what our service has there, since which one it is this service."""
    keys = [node.names.server(server) for server in servers]
    asked = (node.database.command(b"HMGET", key, b"generation", b"since", key=key, writes=False) for key in keys)
    found = zip(servers, await asyncio.gather(*asked), strict=True)
    return {server: [value or b"0" for value in values] for server, values in found}


async def unsubscribe(node: Node, ref: Queue) -> None:
    """See `Store.unsubscribe`."""
    record, *_ = await _find(node, ref)
    if record is not None:
        token = row(record).token
        await node.run("join", [node.names.shard(token)], node.ahead, token, ref.packed, 0)
        await remove(node, [ref], token)


async def settle(node: Node, shard: bytes) -> bool:
    """Have what commands that were cut off did in some slots be so in all; whether there may be more of these."""
    doubts = node.names.doubts(shard)
    latest = round((node.now() - CUT_OFF) * 1000)
    found = await node.database.command(
        b"ZRANGEBYSCORE", doubts, b"-inf", latest, b"LIMIT", 0, _SETTLED, key=shard, writes=False
    )
    await asyncio.gather(*(_settle(node, item[1 : 1 + item[0]], queue(item[1 + item[0] :])) for item in found))
    if found:
        await node.database.command(b"ZREM", doubts, *found, key=shard)
    return len(found) == _SETTLED


async def _settle(node: Node, token: bytes, ref: Queue) -> None:
    """The queue's record on its server says whose it is; what leads to it is there, whatever a failover has lost."""
    shard = node.names.shard(token)
    record, _, server = await _find(node, ref)
    try:
        kept = None if record is None else row(record)
    except DamagedError:  # whose it is need not be known: who deletes the token deletes it too
        return
    if kept is None or kept.token != token:
        await node.run("leave", [shard], token, ref.packed)
    elif await node.exists(token):
        await node.database.command(b"SADD", node.names.queues_of(token), ref.packed, key=shard)
        index = node.names.subscription(kept.subscription_id)
        await node.database.command(b"HSET", index, kept.subscription_id, ref.packed, key=index)
        args = (node.ahead, node.names.bucket_number(ref.notifier_id), server)
        await node.run("enlist", [node.names.server(ref.server)], *args)
        await node.database.command(b"HSETNX", node.names.servers, ref.server, server, key=node.names.servers)
        if record[0] < _ACTIVE:  # who has the server may not have been told of it
            await tell(node.database, node.names, Change(ChangeKind.ADDED, address(server), (ref,)))
    else:
        await remove(node, [ref], token)


async def counts(node: Node) -> dict[bytes, int]:
    """How many subscriptions there are on each SMP server that can be had now."""
    found = await are_wanted(node, await node.known())
    return {server: subscriptions for server, (_, subscriptions) in found.items()}


async def count(node: Node) -> int:
    """See `Store.subscription_count`: of the servers that can be had now."""
    return sum((await counts(node)).values())
