"""Upkeep of the Redis store, in slices: each shard's by its holder."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Gauge, Histogram
from ntf_server.store.contract import FencedError, StoreUnavailableError
from ntf_server.store.portable import batches
from ntf_server.store.records import Space
from ntf_server.store.redis.buckets import empty_parts
from ntf_server.store.redis.connection import info_fields
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.node import Node
from ntf_server.store.redis.queues import CUT_OFF, counts, settle
from ntf_server.store.redis.rendezvous import reweighed
from ntf_server.store.redis.sessions import weights
from ntf_server.store.redis.tokens import clear, drop, withdraw

_SLICE: Final = 200  # of each kind, in a shard, at once
_SOON: Final = 0.02  # seconds until the next slice of what is not done
_ROUND: Final = 60.0  # seconds between two sweeps
_WEIGH: Final = 600.0  # the same, of SMP servers by their queues
_WEIGHER: Final = 0  # the shard whose holder does that
_DAY: Final = 24 * 3600
_UNVERIFIED: Final = _DAY  # seconds that a registration is kept that never was ACTIVE
_KEEP_SERVER: Final = 7 * _DAY  # seconds that a proven server is kept without subscriptions
_SERVERS: Final = 100  # at once
_GONE: Final = 2


class Sweep:
    """Which shards are still to be looked at in this round; when the next one begins (steady seconds)."""

    def __init__(self) -> None:
        self.left: list[int] | None = None
        self.next_at = 0.0
        self.weigh_at = 0.0  # when servers are weighed next (steady seconds)


async def run_slice(node: Node, sweep: Sweep, seen: Sequence[bytes] = ()) -> float:
    """Seconds until the next one is due. `seen`: tokens that sent a command."""
    s = node.state
    calls = {key: node.call("seen", [key], node.ahead, *tokens) for key, tokens in node.by_shard(seen).items()}
    await node.run_those(calls)
    if sweep.left is None:
        if s.steady < sweep.next_at:
            return max(_SOON, sweep.next_at - s.steady)
        sweep.left = list(node.held)
    while sweep.left:
        if await _shard(node, sweep.left[-1]):
            return _SOON
        sweep.left.pop()
    await _servers(node)
    if _WEIGHER in node.held and s.steady >= sweep.weigh_at:
        with suppress(StoreUnavailableError):
            await _weigh(node)
            sweep.weigh_at = s.steady + _WEIGH
    sweep.left, sweep.next_at = None, s.steady + _ROUND
    return _ROUND


async def _shard(node: Node, number: int) -> bool:
    """Whether there may be more that can be done now."""
    shard = node.names.shards[number]
    fence = node.fences.get(shard)
    if fence is None:
        return False
    try:
        return await _slice(node, shard, fence)
    except FencedError:
        return False
    except StoreUnavailableError:
        if node.database.spans:
            raise
        return False  # its own server, or that of a queue which it is about: others do not wait for it


async def _slice(node: Node, shard: bytes, fence: bytes) -> bool:
    s = node.state
    args = (node.ahead, fence, _UNVERIFIED, s.times.silent_ttl, _SLICE)
    found = await node.run("forgotten", [shard], *args)
    for token, why in found:
        if await drop(node, token):
            s.effects.forgotten[why.decode()] += 1
    args = (node.ahead, fence, s.times.verification_ttl, s.times.message_ttl, _SLICE)
    codes, checks, notifications, more = await node.run("expire", [shard], *args)
    s.effects.count_expired(codes, checks, notifications)
    gone = node.names.gone(shard)
    for token in await node.database.command(b"SRANDMEMBER", gone, 10, key=shard, writes=False):
        await clear(node, token)
    withdrawn = await withdraw(node, shard, fence)
    doubts = await settle(node, shard)
    return bool(more) or withdrawn or doubts or len(found) >= _SLICE


async def _servers(node: Node) -> None:
    """Of servers that should be this node's: buckets without queues go, and those that nobody needs any more."""
    mine = sorted(server for server in await node.known() if node.is_mine(server))
    held = {server_id(server) for server in node.state.fences}
    for some in batches(mine, _SERVERS):
        await asyncio.gather(*(_server(node, server, is_held=server in held) for server in some))


async def _server(node: Node, server: bytes, *, is_held: bool) -> None:
    try:
        await _tidy(node, server, is_held=is_held)
    except StoreUnavailableError:
        if node.database.spans:
            raise  # else it is its own slot, or that of a bucket: others do not wait for it


async def _tidy(node: Node, server: bytes, *, is_held: bool) -> None:
    key = node.names.server(server)
    generation, since, over, unused, *listed = await node.run("needs", [key], node.ahead, _KEEP_SERVER)
    times = dict(zip(listed[::2], listed[1::2], strict=True))
    latest = round((node.now() - CUT_OFF) * 1000)  # what came later may not be claimed yet
    settled = [bucket for bucket, at in times.items() if int(at) <= latest]
    found = await _clear(node, server, settled, generation, since, b"")
    is_used = len(settled) < len(times) or 0 in found.values()
    if is_used is bool(unused):
        await node.run("use", [key], node.ahead, "1" if is_used else "")
    forget = over and not is_used and not is_held
    if forget:
        found |= await _clear(node, server, [n for n, left in found.items() if left], generation, since, b"1")
    gone = [word for n, left in found.items() if left == _GONE for word in (n, times[n])]
    if gone:
        await node.run("delist", [key], *gone)
    if not forget or not await node.run("forget_server", [key], node.ahead, _KEEP_SERVER, latest):
        return
    await node.database.command(b"HDEL", node.names.servers, server, key=node.names.servers)
    node.state.effects.servers_forgotten += 1
    packed = await node.database.command(b"HGET", key, b"address", key=key, writes=False)
    if packed is not None:  # somebody needs it again
        await node.database.command(b"HSET", node.names.servers, server, packed, key=node.names.servers)


async def _clear(node: Node, server: bytes, buckets: Sequence[bytes], *head: bytes) -> dict[bytes, int]:
    """What is left of buckets once those without queues are gone. `head`: as `clear.lua` takes it, without the time."""
    answers = await node.run_on("clear", [node.ahead, *head], empty_parts(node, server, map(int, buckets)))
    return dict(zip(buckets, (left for answer in answers for left in answer), strict=True))


async def _weigh(node: Node) -> None:
    """So that nodes have as many queues each, though a few servers have most of them."""
    before, found = await weights(node), await counts(node)
    if found.keys() < (await node.known()).keys():
        raise StoreUnavailableError("the queues of some SMP servers cannot be counted now")
    after = reweighed(before, found)
    key, gone = node.names.weights, before.keys() - after.keys()
    if changed := [word for item in after.items() if before.get(item[0]) != item[1] for word in item]:
        await node.database.command(b"HSET", key, *changed, key=key)
    if gone:
        await node.database.command(b"HDEL", key, *gone, key=key)


def show(node: Node, metrics: Metrics) -> None:
    """What this node holds, and how long what it writes takes."""
    metrics.gauge(Gauge.STORE_SHARDS, lambda: len(node.held))
    metrics.gauge(Gauge.STORE_NODES, lambda: len(node.rendezvous.nodes))
    node.database.on_commit = partial(metrics.observe, Histogram.STORE_COMMIT)


async def space(node: Node) -> Space:
    """See `Store.space`: the memory of all primaries that are there, and the room of the one that has least."""
    told = await node.database.command_everywhere(b"INFO", b"memory")
    fields = [info_fields(info) for info in told.values()]
    memory = [(int(each.get("used_memory", 0)), int(each.get("maxmemory", 0))) for each in fields]
    rooms = [max(0, limit - used) for used, limit in memory if limit]
    return Space(sum(used for used, _ in memory), None, min(rooms, default=None))
