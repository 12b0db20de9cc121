"""Registrations in the Redis store.

A registration is found by its device token and verify key through an index in another slot. So TNEW, TRPL, TVFY and
TDEL are steps, each of which may be repeated: the index says who is meant, the registration whether it is there.

TNEW and TRPL prepare in the registration's slot what it is to become, claim the pair in the index, and apply what was
prepared. Each try has a number of its own, which stands in all three. Who meets a claim that its registration does not
show applies it himself: so whoever claimed first has the pair, whether he is slow or dead. Where nothing is prepared
for that claim, nothing ever comes of it, and the pair is anybody's.
"""

import hmac
import math
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from typing import Any, Final, NamedTuple

from msgspec import structs

from ntf_server.store.clients import KeptClient, is_same_client
from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.memory import provider_of
from ntf_server.store.records import Cursor, Device, LastPush, NewToken, Registered, Replacement, Token
from ntf_server.store.redis.node import Node
from ntf_server.store.redis.quarantine import set_aside
from ntf_server.store.redis.queues import CUT_OFF, remove
from ntf_server.store.redis.rows import (
    ATTEMPT,
    FIND,
    DamagedError,
    Lead,
    lane_of,
    lead,
    new_registration,
    pack_registration,
    pushed,
    queue,
    registration,
    replaced,
    token_record,
)
from ntf_server.store.sealing import CODE, DEVICE_TOKEN, SERVER_DH, SealingError, fingerprint
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, TokenStatus

_TRIES: Final = 20  # of a registration that others change at the same time
_SLICE: Final = 500  # subscriptions that are deleted at once
_WITHDRAWN: Final = 100  # registrations at once


class _Free(NamedTuple):
    """That memory has it no more: under which fence, and by how many calls it may have been handed out."""

    fence: bytes
    calls: int


_NOT_FREE: Final = _Free(b"", 0)


async def register(node: Node, new: NewToken, wait: float) -> Registered | None:
    """See `Store.register`. What cannot be read is made anew."""
    s, token_id = node.state, new.token_id
    lookup = s.sealer.lookup(new.device.provider, new.device.token)
    lane = lane_of(s.sealer, new.device, new.origin)
    for _ in range(_TRIES):
        pair = await _pair(node, lookup, new.verify_key)
        if pair.has is not None:
            found = await _revive(node, pair.has, new, lane, wait)
            if isinstance(found, Registered):
                return found
            if found is _Found.ANOTHERS:
                return None
            if found is _Found.CHANGED:
                continue
        mine = Lead(token_id, s.random(ATTEMPT))
        record = new_registration(s.sealer, new, mine.attempt)
        content = (lane, record, s.sealer.seal(new.code, CODE + token_id), math.ceil(wait))
        if await _become(node, mine, pair, content, b""):
            _told(node, token_id, lane, wait)
            status, now = TokenStatus.REGISTERED, int(node.wall())
            return Registered(token_id, token_id, new.verify_key, status, None, 0, now, False, new.server_dh)
    raise StoreUnavailableError("a registration is changed by others all the time")


class _Pair(NamedTuple):
    """Of device token (the name of its hash) and verify key. Who `has` it may have another device token by now, or not
    yet this one, or be gone.
    """

    device: bytes
    verify_key: bytes
    has: Lead | None


async def _pair(node: Node, lookup: bytes, verify_key: bytes) -> _Pair:
    device = node.names.device(lookup)
    packed = await node.database.command(b"HGET", device, verify_key, key=device, writes=False)
    return _Pair(device, verify_key, None if packed is None else lead(packed))


async def _become(node: Node, mine: Lead, pair: _Pair, content: tuple[bytes, bytes, bytes, int], old: bytes) -> bool:
    """Have a registration be this from now on, if the pair still is whose it was. `content`: lane, record, sealed code,
    seconds that it waits; `old`: the record that is replaced.

    The claim decides: what is prepared for it comes from then on, by whoever meets it.
    """
    if not await node.run("prepare", [node.names.shard(mine.token)], node.ahead, *mine, *content, old):
        return False
    args = (pair.verify_key, mine.packed, pair.has.packed if pair.has else b"")
    if await node.run("claim", [pair.device], *args) != mine.packed:
        return False
    free = _free(node, mine.token)
    done, record = await _apply(node, mine, free)
    if free.fence and not done:  # somebody else did it, and the store does not know that memory has it no more
        node.handed.strand([node.names.number(mine.token)])
    if record == content[1]:
        return True
    await node.run("unclaim", [pair.device], pair.verify_key, mine.packed)  # by now it is something else, or gone
    return False


async def _apply(node: Node, claimed: Lead, free: _Free = _NOT_FREE) -> tuple[int, bytes | None]:
    """Have come what a claim was prepared for: whether that was still to be done, and the record that there is then."""
    done, record = await node.run("apply", [node.names.shard(claimed.token)], node.ahead, *claimed, *free)
    return done, record


class _Found(Enum):
    ANOTHERS = "another client's"
    CHANGED = "it is to be looked at again"
    STALE = "with another device token, or gone"


async def _revive(node: Node, has: Lead, new: NewToken, lane: bytes, wait: float) -> Registered | _Found:
    """The registration whose a pair is."""
    s, token_id = node.state, has.token
    lookup = s.sealer.lookup(new.device.provider, new.device.token)
    values = await node.fields(token_id, FIND)
    try:
        token = token_record(token_id, values)
        if token is None or (r := registration(values[-1])).lookup != lookup:
            return _Found.CHANGED if await _device_by(node, has) == lookup else _Found.STALE
        s.sealer.open(r.device_token, DEVICE_TOKEN + token_id)  # or it could not be pushed to
        server_dh = s.sealer.open(r.server_dh, SERVER_DH + token_id)
        kept = KeptClient(r.client_dh, r.secret, r.server_private)
        if not is_same_client(s.sealer, token_id, kept, new.client_dh):
            return _Found.ANOTHERS
    except (DamagedError, SealingError):
        await drop(node, token_id)
        return _Found.STALE
    free = _free(node, token_id)
    args = (node.ahead, token_id, math.ceil(wait), *free)
    revived = await node.run("revive", [node.names.shard(token_id)], *args)
    if revived is None:
        return _Found.CHANGED
    status, period, proven = revived
    _told(node, token_id, lane, 0.0)
    now = int(node.wall())
    t = TokenStatus(status.decode())
    return Registered(token_id, token_id, token.verify_key, t, None, int(period), now, proven is not None, server_dh)


def _free(node: Node, token: bytes) -> _Free:
    """If memory has it, but no claim: it waits there for nothing from now on."""
    s = node.state
    if token in s.claims or token in node.ending:
        return _NOT_FREE
    free = token in s.ready or token in s.cooling
    s.anew(token)
    return _Free(node.fence(node.names.shard(token)), node.handed.calls) if free else _NOT_FREE


def _told(node: Node, token: bytes, lane: bytes, wait: float) -> None:
    """Something may be due for it."""
    if wait <= 0:
        if node.fence(node.names.shard(token)):
            node.state.owe(lane)
        else:
            node.made_due([token])
        node.state.effects.due(provider_of(lane), 0.0)
    else:
        node.state.effects.due(provider_of(lane), float(math.ceil(wait)))


async def find(node: Node, token_id: bytes) -> Token | None:
    """See `Store.find_token`. Raises DamagedError."""
    return _as_seen(node, token_record(token_id, await node.fields(token_id, FIND)))


def _as_seen(node: Node, token: Token | None) -> Token | None:
    if token is None or not node.shift:
        return token
    return structs.replace(token, active_at=token.active_at - node.shift)


async def find_registration(node: Node, device: DeviceToken, verify_key: bytes) -> Token | None:
    """See `Store.find_registration`."""
    lookup = node.state.sealer.lookup(device.provider, device.token)
    has = (await _pair(node, lookup, verify_key)).has
    if has is None:
        return None
    values = await node.fields(has.token, FIND)
    try:
        token = token_record(has.token, values)
        return _as_seen(node, token) if token and registration(values[-1]).lookup == lookup else None
    except DamagedError:
        return None


async def put_off(node: Node, waits: Mapping[Any, float | None]) -> None:
    """See `Store.put_off`."""
    for token, wait in waits.items():
        if wait is None:
            await drop(node, token, if_waiting=True)
        elif await node.run("put_off", [node.names.shard(token)], node.ahead, token, math.ceil(wait)):
            [lane] = await node.fields(token, [b"l"])
            if lane:
                node.state.effects.due(provider_of(lane), float(math.ceil(wait)))


async def verify(node: Node, token: bytes, code: bytes) -> bool:
    """See `Store.verify`."""
    sealed, packed, lane = await node.fields(token, (b"c", b"r", b"l"))
    if sealed is None:
        return False
    try:
        r = registration(packed)
        right = hmac.compare_digest(node.state.sealer.open(sealed, CODE + token), code)
    except (DamagedError, SealingError):
        await set_aside(node, [token])
        raise DamagedError("tokens", token) from None
    if not right:
        return False
    done = await node.run("verify", [node.names.shard(token)], node.ahead, token, sealed)
    if not done:
        return False
    if done == 2:
        _told(node, token, lane, 0.0)
    device = node.names.device(r.lookup)
    others = await node.run("win", [device], r.verify_key, token, ATTEMPT)
    if others is None:  # another registration was verified meanwhile; or this one has another device by now
        [packed] = await node.fields(token, [b"r"])
        if _device_of(packed) in {r.lookup, b""}:
            await drop(node, token)
        return False
    for other in map(lead, others):
        if await _device_by(node, other) in {r.lookup, b""}:  # else it has another one by now
            await drop(node, other.token)
        await node.run("unclaim", [device], b"-" + other.token, other.packed)
    return True


async def replace(node: Node, token: bytes, new: Replacement, wait: float) -> bool:
    """See `Store.replace`."""
    s = node.state
    lookup = s.sealer.lookup(new.device.provider, new.device.token)
    lane = lane_of(s.sealer, new.device, new.origin)
    for _ in range(_TRIES):
        [packed] = await node.fields(token, [b"r"])
        if packed is None:
            return False
        old = registration(packed)
        pair = await _pair(node, lookup, old.verify_key)
        if pair.has is not None and pair.has.token != token and await _device_by(node, pair.has) == lookup:
            return False
        mine = Lead(token, s.random(ATTEMPT))
        record = replaced(s.sealer, token, old, new, mine.attempt)
        content = (lane, record, s.sealer.seal(new.code, CODE + token), math.ceil(wait))
        if await _become(node, mine, pair, content, packed):
            if old.lookup != lookup:
                left = Lead(token, old.attempt).packed
                await node.run("unclaim", [node.names.device(old.lookup)], old.verify_key, left)
            _told(node, token, lane, wait)
            return True
    raise StoreUnavailableError("a registration is changed by others all the time")


async def _device_by(node: Node, claimed: Lead) -> bytes | None:
    """As `_device_of`, of whose a pair is: who is in the middle of a claim is brought to its end."""
    _, record = await _apply(node, claimed)
    return _device_of(record)


def _device_of(packed: bytes | None) -> bytes | None:
    """What the device token of a record is found by; empty if that cannot be read, None if there is none."""
    try:
        return None if packed is None else registration(packed).lookup
    except DamagedError:
        return b""


async def drop(node: Node, token: bytes, *, if_waiting: bool = False) -> bool:
    """Delete a registration, then what is its; whether there was one."""
    packed = await node.run("drop", [node.names.shard(token)], token, "1" if if_waiting else "", node.ahead)
    if packed is None:
        if not if_waiting:
            node.state.forget(token)
            await clear(node, token)
        return False
    node.state.forget(token)
    with suppress(DamagedError):  # then what leads to it leads nowhere
        r = registration(packed)
        left = Lead(token, r.attempt).packed
        await node.run("unclaim", [node.names.device(r.lookup)], r.verify_key, left)
    await clear(node, token)
    return True


async def clear(node: Node, token: bytes) -> None:
    """Delete what a token left behind."""
    queues, shard = node.names.queues_of(token), node.names.shard(token)
    while True:
        _, some = await node.database.command(b"SSCAN", queues, b"0", b"COUNT", _SLICE, key=shard, writes=False)
        if not some:
            break
        await remove(node, [queue(packed) for packed in some], token)
    await node.database.command(b"SREM", node.names.gone(shard), token, key=shard)


async def withdraw(node: Node, shard: bytes, fence: bytes) -> bool:
    """What commands that were cut off prepared comes no more: their pairs are free. Whether there may be more."""
    found = await node.run("withdraw", [shard], node.ahead, fence, round(CUT_OFF), _WITHDRAWN)
    for token, attempt, packed in found:
        with suppress(DamagedError):
            r = registration(packed)
            await node.run("unclaim", [node.names.device(r.lookup)], r.verify_key, Lead(token, attempt).packed)
    return len(found) == _WITHDRAWN


async def set_period(node: Node, token: bytes, minutes: int) -> None:
    """See `Store.set_period`."""
    await node.run("set_period", [node.names.shard(token)], node.ahead, token, minutes)


async def set_vapid_key(node: Node, token: bytes, key_id: bytes) -> None:
    """See `Store.set_vapid_key`. A record that others change at the same time is theirs."""
    [packed] = await node.fields(token, (b"r",))
    if packed is None:
        return
    try:
        known = registration(packed)
    except DamagedError:  # whoever reads it next has it set aside
        return
    record = pack_registration(structs.replace(known, vapid_key=key_id))
    await node.run("set_vapid_key", [node.names.shard(token)], token, packed, record)


async def mark_checks(node: Node, limit: int, quiet_only: bool) -> int:
    """See `Store.mark_checks`: of the shards that this node holds."""
    seen = 0
    for shard in node.fences:
        if seen == limit:
            break
        args = (node.ahead, limit - seen, "1" if quiet_only else "")
        count, *lanes = await node.run("mark_checks", [shard], *args)
        seen += count
        node.owe(lanes)
    return seen


async def invalidate(
    node: Node, status: TokenStatus, reason: InvalidReason, after: Cursor | None, limit: int
) -> tuple[int, Cursor | None]:
    """See `Store.invalidate`. A cursor is (number of the shard, token id)."""
    number, last = after or (0, b"")
    done = 0
    while number < len(node.names.shards) and limit > 0:
        shard = node.names.shards[number]
        count, looked_at, last = await node.run("invalidate", [shard], status, reason, last, limit)
        done += count
        if looked_at < limit:
            number, last = number + 1, b""
        limit -= looked_at
    return done, (number, last) if number < len(node.names.shards) else None


async def last_push(node: Node, token: bytes) -> LastPush | None:
    """See `Store.last_push`."""
    [packed] = await node.fields(token, (b"i",))
    if packed is None:
        return None
    push = pushed(packed)
    return structs.replace(push, at=push.at - node.shift)


async def device_of(node: Node, token: bytes) -> Device | None:
    """See `Store.device_of`."""
    [packed] = await node.fields(token, [b"r"])
    if packed is None:
        return None
    kept = registration(packed)
    return Device(Provider(kept.provider), fingerprint(kept.lookup))
