"""Changes of servers, from whichever node made them to who holds the server: a stream that all read."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from ntf_server.store.changes import Changes, audits
from ntf_server.store.contract import StoreCorruptError, StoreError
from ntf_server.store.portable import batches
from ntf_server.store.records import Change, ChangeKind, Removed, ToAudit
from ntf_server.store.redis import buckets
from ntf_server.store.redis.database import PROMPT, Database
from ntf_server.store.redis.names import Names, server_id
from ntf_server.store.redis.node import LEASE, NODES, Node, published
from ntf_server.store.redis.rows import Cursor, address, queue
from smp_bridge.address import ServerAddress

log = logging.getLogger(__name__)

_BLOCK: Final = 1.0  # seconds that one read waits
_PAUSE: Final = 0.5  # seconds after a failure
_LATE_ENDS: Final = 15.0  # seconds that SMP servers may keep an END back (wire.md, section 7)
_AT_ONCE: Final = 100  # servers
_TOLD: Final = 500  # queues at once


async def newest(database: Database, key: bytes) -> bytes:
    """Id of a stream's last entry so far."""
    last = await database.command(b"XREVRANGE", key, b"+", b"-", b"COUNT", 1, key=key, writes=False)
    return bytes(last[0][0]) if last else b"0-0"


async def follow(
    node: Node, after: Mapping[bytes, bytes], changes: Changes, hear: Callable[[Iterable[int]], None]
) -> None:
    """The streams of changes and of rings, `after` these ids: until cancelled, or until the store is gone.

    `hear` is told of shards, by their numbers.
    """
    names, read = node.names, dict(after)
    reader = node.database.stream_reader()
    try:
        while True:
            try:
                told = await reader.read(read, block=_BLOCK)
                for entry in told.get(names.bell, ()):
                    hear(map(int, entry.fields[b"s"].split()))
                    read[names.bell] = entry.id
                for entry in told.get(names.changes, ()):
                    await _take(node, dict(entry.fields), changes)
                    read[names.changes] = entry.id
            except StoreError as e:
                log.debug("changes cannot be read: %s", e)
                await asyncio.sleep(_PAUSE)
    except StoreCorruptError:
        return
    finally:
        await reader.close()


async def doubt(node: Node, changes: Changes) -> None:
    """What was stored last of any server may be lost: of those that other nodes hold too, as they may lose them now."""
    ours = list(node.state.fences)
    changes.tell([Change(ChangeKind.LOST, server) for server in ours])
    while True:
        try:
            known = await node.known()
            break
        except StoreError as e:
            log.debug("servers cannot be read: %s", e)
            await asyncio.sleep(_PAUSE)
    others = [server for server in map(address, known.values()) if server not in ours]
    changes.tell([Change(ChangeKind.LOST, server) for server in others])
    for pause in (0.0, LEASE, _LATE_ENDS):  # till then who has not heard of it yet may store ENDs of its sessions
        await asyncio.sleep(pause)
        for some in batches(list(known.items()), _AT_ONCE):
            await asyncio.gather(*(_take_back(node, server, address(plain)) for server, plain in some))


async def _take_back(node: Node, server: bytes, plain: ServerAddress) -> None:
    """Another node may have spoken for it, whose fence is lost: its END to who spoke for it before was none of somebody
    else's, and nobody subscribes these queues any more.
    """
    while True:
        try:
            for some in batches(await buckets.take_back(node, server), _TOLD):
                await tell(node.database, node.names, Change(ChangeKind.ADDED, plain, tuple(some)))
            return
        except StoreError as e:
            log.debug("ENDs cannot be taken back: %s", e)
            await asyncio.sleep(_PAUSE)


async def _take(node: Node, fields: dict[bytes, bytes], changes: Changes) -> None:
    if fields[b"k"] == NODES:
        await node.look()
        return
    found = change(fields)
    if found.kind is ChangeKind.FREE:
        ours = node.is_mine(server_id(found.server))
    else:
        ours = await _is_ours(node, found.server)
    if ours:
        changes.tell([found])


async def _is_ours(node: Node, server: ServerAddress) -> bool:
    """This node holds it, or nobody does."""
    if server in node.state.fences:
        return True
    key = node.names.server(server_id(server))
    try:
        async with asyncio.timeout(PROMPT):  # changes of others wait behind it
            holder, until = await node.database.command(b"HMGET", key, b"node", b"until", key=key, writes=False)
    except TimeoutError:
        return True  # perhaps: who tries to speak for it finds out
    return not holder or holder == node.id or float(until) <= node.now() * 1000


async def tell(database: Database, names: Names, change: Change) -> None:
    """All nodes."""
    fields = (b"k", change.kind.value, b"s", change.server.plain.encode(), b"r", _pack(change))
    await database.run(published(names, *fields))


async def request_audit(node: Node, subscriptions: Sequence[ToAudit]) -> None:
    """See `Store.request_audit`."""
    for wanted in audits(subscriptions):
        await tell(node.database, node.names, wanted)


def _pack(change: Change) -> bytes:
    refs: list[Any]
    if change.kind is ChangeKind.REMOVED:
        refs = [(_packed(r.ref), r.active, r.associated, *r.cursor) for r in change.removed]
    else:
        refs = [_packed(ref) for ref in change.refs]
    return msgspec.msgpack.encode(refs)


def _packed(ref: Any) -> bytes:
    return bytes(ref.packed)


def change(fields: dict[bytes, bytes]) -> Change:
    """An entry of the stream."""
    kind, server = ChangeKind(fields[b"k"].decode()), address(fields[b"s"])
    if kind is ChangeKind.REMOVED:
        rows = msgspec.msgpack.decode(fields[b"r"], type=list[tuple[bytes, bool, bool, int, int, int]])
        return Change(kind, server, removed=tuple(Removed(queue(q), a, s, Cursor(*at)) for q, a, s, *at in rows))
    refs = msgspec.msgpack.decode(fields[b"r"], type=list[bytes])
    return Change(kind, server, tuple(queue(q) for q in refs))
