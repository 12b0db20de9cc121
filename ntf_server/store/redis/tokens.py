"""Registrations in the Redis store.

A registration is found by its device token and verify key through an index in another slot. So TNEW, TRPL, TVFY and
TDEL are steps, each of which may be repeated: the index says who is meant, the registration whether it is there. An
entry that leads nowhere counts as none.
"""

import hmac
import math
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from typing import Any, Final

from msgspec import structs

from ntf_server.store.clients import KeptClient, is_same_client
from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.memory import provider_of
from ntf_server.store.records import Cursor, LastPush, NewToken, Registered, Replacement, Token
from ntf_server.store.redis.node import Node
from ntf_server.store.redis.quarantine import set_aside
from ntf_server.store.redis.queues import remove
from ntf_server.store.redis.rows import (
    FIND,
    DamagedError,
    lane_of,
    new_registration,
    pushed,
    queue,
    registration,
    replaced,
    token_record,
)
from ntf_server.store.sealing import CODE, DEVICE_TOKEN, SERVER_DH, SealingError
from smp_bridge.ntf import DeviceToken, InvalidReason, TokenStatus

_TRIES: Final = 20  # of a registration that others change at the same time
_SLICE: Final = 500  # subscriptions that are deleted at once
_DELETED: Final = 2


async def register(node: Node, new: NewToken, wait: float) -> Registered | None:
    """See `Store.register`. What cannot be read is made anew."""
    s = node.state
    lookup = s.sealer.lookup(new.device.provider, new.device.token)
    index = node.names.device(lookup)
    lane = lane_of(s.sealer, new.device, new.origin)
    token_id = new.token_id
    for _ in range(_TRIES):
        # Whoever finds an id that leads nowhere uses it: who put it there, and is about to make it, finds it made then.
        token_id = await node.run("claim", [index], new.verify_key, token_id, "")
        found = await _revive(node, token_id, new, lane, wait)
        if isinstance(found, Registered):
            return found
        if found is _Found.ANOTHERS:
            return None
        if found is _Found.ELSEWHERE:
            await node.run("unclaim", [index], new.verify_key, token_id)
            token_id = new.token_id
            continue
        record = new_registration(s.sealer, new, token_id)
        code = s.sealer.seal(new.code, CODE + token_id)
        args = (node.ahead, token_id, lane, record, code, math.ceil(wait))
        made = await node.run("create", [node.names.shard(token_id)], *args)
        if made == _DELETED:
            await node.run("unclaim", [index], new.verify_key, token_id)
            token_id = new.token_id
        elif made:
            _told(node, token_id, lane, wait)
            status, now = TokenStatus.REGISTERED, int(node.wall())
            return Registered(token_id, token_id, new.verify_key, status, None, 0, now, False, new.server_dh)
    raise StoreUnavailableError("a registration is changed by others all the time")


class _Found(Enum):
    NOTHING = "nothing"
    ANOTHERS = "another client's"
    ELSEWHERE = "with another device token"


async def _revive(node: Node, token_id: bytes, new: NewToken, lane: bytes, wait: float) -> Registered | _Found:
    """The registration that an id leads to."""
    s = node.state
    values = await node.fields(token_id, FIND)
    try:
        token = token_record(token_id, values)
        if token is None:
            return _Found.NOTHING
        r = registration(values[-1])
        if r.lookup != s.sealer.lookup(new.device.provider, new.device.token):
            return _Found.ELSEWHERE
        s.sealer.open(r.device_token, DEVICE_TOKEN + token_id)  # or it could not be pushed to
        server_dh = s.sealer.open(r.server_dh, SERVER_DH + token_id)
        kept = KeptClient(r.client_dh, r.secret, r.server_private)
        if not is_same_client(s.sealer, token_id, kept, new.client_dh):
            return _Found.ANOTHERS
    except (DamagedError, SealingError):
        await drop(node, token_id)
        return _Found.ELSEWHERE
    free = _free(node, token_id)
    args = (node.ahead, token_id, math.ceil(wait), free)
    revived = await node.run("revive", [node.names.shard(token_id)], *args)
    if revived is None:
        return _Found.NOTHING
    status, period, proven = revived
    _told(node, token_id, lane, 0.0)
    now = int(node.wall())
    t = TokenStatus(status.decode())
    return Registered(token_id, token_id, token.verify_key, t, None, int(period), now, proven is not None, server_dh)


def _free(node: Node, token: bytes) -> str:
    """Whether memory has it, but no claim: it waits there for nothing from now on."""
    s = node.state
    if token in s.claims or token in node.ending:
        return ""
    free = token in s.ready or token in s.cooling
    s.anew(token)
    return "1" if free else ""


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
    index = node.names.device(lookup)
    token_id = await node.database.command(b"HGET", index, verify_key, key=index, writes=False)
    if token_id is None:
        return None
    values = await node.fields(token_id, FIND)
    try:
        token = token_record(token_id, values)
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
    others = await node.run("win", [device], r.verify_key, token)
    if others is None:  # another registration was verified meanwhile; or this one has another device by now
        if await _device_of(node, token) in {r.lookup, b""}:
            await drop(node, token)
        return False
    for other in others:
        if await _device_of(node, other) in {r.lookup, b""}:  # else it has another one by now
            await drop(node, other)
        await node.run("unclaim", [device], b"-" + other, other)
    return True


async def replace(node: Node, token: bytes, new: Replacement, wait: float) -> bool:
    """See `Store.replace`."""
    s, shard = node.state, node.names.shard(token)
    lane = lane_of(s.sealer, new.device, new.origin)
    for _ in range(_TRIES):
        [packed] = await node.fields(token, [b"r"])
        if packed is None:
            return False
        old = registration(packed)
        lookup = s.sealer.lookup(new.device.provider, new.device.token)
        index = node.names.device(lookup)
        other = await node.database.command(b"HGET", index, old.verify_key, key=index, writes=False)
        if other is not None and other != token and await _device_of(node, other) == lookup:
            return False
        if await node.run("claim", [index], old.verify_key, token, other or b"") != token:
            continue
        record = replaced(s.sealer, token, old, new)
        code = s.sealer.seal(new.code, CODE + token)
        args = (node.ahead, token, lane, record, code, math.ceil(wait), _free(node, token), packed)
        if not await node.run("replace", [shard], *args):
            if await node.exists(token):
                continue
            await node.run("unclaim", [index], old.verify_key, token)
            return False
        if old.lookup != lookup:
            await node.run("unclaim", [node.names.device(old.lookup)], old.verify_key, token)
        _told(node, token, lane, wait)
        return True
    raise StoreUnavailableError("a registration is changed by others all the time")


async def _device_of(node: Node, token: bytes) -> bytes | None:
    """What the device token of a registration is found by; empty if that cannot be read, None if it is gone."""
    [packed] = await node.fields(token, [b"r"])
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
        await node.run("unclaim", [node.names.device(r.lookup)], r.verify_key, token)
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


async def set_period(node: Node, token: bytes, minutes: int) -> None:
    """See `Store.set_period`."""
    await node.run("set_period", [node.names.shard(token)], node.ahead, token, minutes)


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
