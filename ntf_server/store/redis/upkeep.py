"""Upkeep of the Redis store, in slices: each shard's by its holder."""

from collections.abc import Sequence
from typing import Final

from ntf_server.store.contract import FencedError
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.node import Node
from ntf_server.store.redis.queues import counts, settle
from ntf_server.store.redis.rendezvous import reweighed
from ntf_server.store.redis.sessions import weights
from ntf_server.store.redis.tokens import clear, drop

_SLICE: Final = 200  # of each kind, in a shard, at once
_SOON: Final = 0.02  # seconds until the next slice of what is not done
_ROUND: Final = 60.0  # seconds between two sweeps
_WEIGH: Final = 600.0  # the same, of SMP servers by their queues
_WEIGHER: Final = 0  # the shard whose holder does that
_DAY: Final = 24 * 3600
_UNVERIFIED: Final = _DAY  # seconds that a registration is kept that never was ACTIVE
_KEEP_SERVER: Final = 7 * _DAY  # seconds that a proven server is kept without subscriptions


class Sweep:
    """Which shards are still to be looked at in this round; when the next one begins (steady seconds)."""

    def __init__(self) -> None:
        self.left: list[int] | None = None
        self.next_at = 0.0
        self.servers = True  # are still to be looked at
        self.weigh_at = 0.0  # when servers are weighed next (steady seconds)


async def run_slice(node: Node, sweep: Sweep, seen: Sequence[bytes] = ()) -> float:
    """Seconds until the next one is due. `seen`: tokens that sent a command."""
    s = node.state
    for shard, tokens in node.by_shard(seen).items():
        await node.run("seen", [shard], node.ahead, *tokens)
    if sweep.left is None:
        if s.steady < sweep.next_at:
            return max(_SOON, sweep.next_at - s.steady)
        sweep.left, sweep.servers = list(node.held), True
    while sweep.left:
        if sweep.left[-1] in node.held and await _shard(node, sweep.left[-1]):
            return _SOON
        sweep.left.pop()
    if sweep.servers and await _servers(node):
        return _SOON
    if _WEIGHER in node.held and s.steady >= sweep.weigh_at:
        await _weigh(node)
        sweep.weigh_at = s.steady + _WEIGH
    sweep.left, sweep.next_at = None, s.steady + _ROUND
    return _ROUND


async def _shard(node: Node, number: int) -> bool:
    """Whether there may be more."""
    s, shard, fence = node.state, node.names.shards[number], node.held[number]
    try:
        args = (node.ahead, fence, _UNVERIFIED, s.times.silent_ttl, _SLICE)
        found = await node.run("forgotten", [shard], *args)
        for token, why in found:
            if await drop(node, token):
                s.effects.forgotten[why.decode()] += 1
        args = (node.ahead, fence, s.times.verification_ttl, s.times.message_ttl, _SLICE)
        codes, checks, notifications, more = await node.run("expire", [shard], *args)
    except FencedError:
        return False
    s.effects.count_expired(codes, checks, notifications)
    gone = node.names.gone(shard)
    for token in await node.database.command(b"SRANDMEMBER", gone, 10, key=shard, writes=False):
        await clear(node, token)
    doubts = await settle(node, shard)
    return bool(more) or doubts or len(found) >= _SLICE


async def _servers(node: Node) -> bool:
    """Forget servers that nobody needs any more."""
    ours = {server_id(server) for server in node.state.fences}
    servers = [server for server in await node.known() if server not in ours]
    keys = [node.names.server(server) for server in servers]
    calls = [node.call("forget_server", [key], node.ahead, _KEEP_SERVER) for key in keys]
    for server, key, gone in zip(servers, keys, await node.database.run_all(calls), strict=True):
        if gone:
            await node.database.command(b"HDEL", node.names.servers, server, key=node.names.servers)
            node.state.effects.servers_forgotten += 1
            packed = await node.database.command(b"HGET", key, b"address", key=key, writes=False)
            if packed is not None:  # somebody needs it again
                await node.database.command(b"HSET", node.names.servers, server, packed, key=node.names.servers)
    return False


async def _weigh(node: Node) -> None:
    """So that nodes have as many queues each, though a few servers have most of them."""
    before = await weights(node)
    after = reweighed(before, await counts(node))
    key, gone = node.names.weights, before.keys() - after.keys()
    if changed := [word for item in after.items() if before.get(item[0]) != item[1] for word in item]:
        await node.database.command(b"HSET", key, *changed, key=key)
    if gone:
        await node.database.command(b"HDEL", key, *gone, key=key)
