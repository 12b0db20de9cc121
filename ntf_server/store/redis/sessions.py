"""SMP servers and what is subscribed on them, in the Redis store.

Each is held by one node, under a lease with a fence.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from ntf_server.store.records import (
    Change,
    ChangeKind,
    Confirmed,
    Cursor,
    Page,
    ServiceCertificate,
    ServiceState,
    Session,
    Share,
    ToAudit,
    Wanted,
)
from ntf_server.store.redis import changes
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.node import LEASE, Node, Word
from ntf_server.store.redis.quarantine import set_queues_aside
from ntf_server.store.redis.rows import HEAD, NUMBERS, STAMP, DamagedError, Queue, address, owner, row
from ntf_server.store.redis.rows import Cursor as Place
from ntf_server.store.sealing import NOTIFIER_KEY, SERVICE_KEY, SealingError
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import SubscriptionStatus
from smp_bridge.service import ids_hash

_ALL: Final = "+inf"  # generations below it are all
_LEASE_MS: Final = round(LEASE * 1000)
_LOST_EVERY: Final = 3600.0  # seconds between two checks of a token for what servers sent in vain
_MAX_LOST: Final = 100_000  # such checks in that time, of all tokens
_ACTIVE: Final = NUMBERS[SubscriptionStatus.ACTIVE]
_START: Final = Place(0, -1)
_UNSETTLED: Final = (b"old", b"free")  # servers that have no node, or are about to have none


# --- who speaks for a server


def key(node: Node, server: ServerAddress) -> bytes:
    """Of its hash."""
    return node.names.server(server_id(server))


async def acquire(node: Node, server: ServerAddress) -> Session | None:
    """See `Store.acquire`."""
    await node.know(server)
    fence = await node.run("acquire", [key(node, server)], node.ahead, node.id, _LEASE_MS, server.plain.encode())
    if fence is None:
        return None
    node.state.generations.drop(server)
    node.state.fences.put(server, int(fence))
    return Session(server, int(fence))


async def renew(node: Node, sessions: Sequence[Session]) -> list[Session]:
    """See `Store.renew`."""
    calls = [node.call("renew", [key(node, s.server)], node.ahead, node.id, _LEASE_MS, s.fence) for s in sessions]
    kept = await node.database.run_all(calls)
    return [session for session, is_kept in zip(sessions, kept, strict=True) if not is_kept]


async def release(node: Node, session: Session) -> None:
    """See `Store.release`."""
    is_free = await node.run("release", [key(node, session.server)], node.ahead, node.id, session.fence)
    if node.state.fences.get(session.server) == session.fence:
        node.state.fences.drop(session.server)
        node.state.generations.drop(session.server)
    if is_free:
        await changes.tell(node.database, node.names, Change(ChangeKind.FREE, session.server))


async def announce(node: Node, session: Session, *, whole: bool) -> None:
    """See `Store.announce`."""
    keys, who = speaking(node, session)
    await node.run("announce", keys, *who, "1" if whole else "")


async def share(node: Node, sessions: Sequence[Session]) -> Share:
    """See `Store.share`."""
    servers = await node.known()
    node.rendezvous.weights = await weights(node)
    ours = {server_id(s.server) for s in sessions}
    others = [server for server in servers if server not in ours]
    calls = [node.call("holders", [node.names.server(server)], node.ahead, _LEASE_MS) for server in others]
    found = dict(zip(others, await node.database.run_all(calls), strict=True))
    take = {server for server, how in found.items() if _is_to_take(node, server, how)}
    unsettled = any(how in _UNSETTLED and server not in take for server, how in found.items())
    give = [s for s in sessions if not node.is_mine(server_id(s.server))]
    return Share([address(servers[server]) for server in take], give, unsettled)


async def weights(node: Node) -> dict[bytes, int]:
    """About how many queues the large SMP servers have, by their ids."""
    name = node.names.weights
    found = await node.database.command(b"HGETALL", name, key=name, writes=False)
    return dict(zip(found[::2], map(int, found[1::2]), strict=True))


def _is_to_take(node: Node, server: bytes, how: bytes) -> bool:
    return (how == b"late" and not node.has_left) or (how in (b"new", b"free") and node.is_mine(server))


def speaking(node: Node, session: Session) -> tuple[list[bytes], tuple[Word, ...]]:
    """Key, and the arguments by which scripts know that the session counts."""
    return [key(node, session.server)], (node.ahead, node.id, session.fence)


# --- reading


async def wanted_servers(node: Node) -> list[ServerAddress]:
    """See `Store.servers`."""
    known = await node.known()
    answers = await node.database.run_all([node.call("is_wanted", [node.names.server(s)]) for s in known])
    return [address(packed) for packed, (wanted, _) in zip(known.values(), answers, strict=True) if wanted]


async def is_wanted(node: Node, server: ServerAddress) -> bool:
    """See `Store.is_wanted`."""
    wanted, _ = await node.run("is_wanted", [key(node, server)])
    return bool(wanted)


async def page(node: Node, session: Session, after: Cursor | None, limit: int, *, associated: bool) -> Page:
    """See `Store.page`."""
    keys, who = speaking(node, session)
    generation = node.state.generations.get(session.server, 0)
    start = after or (Place(generation, -1) if associated else _START)
    below: Any = _ALL if not generation else generation + 1 if associated else generation
    if associated and not generation:
        below = 0
    items = await node.run("page", keys, *who, *start, below, limit)
    refs = [(Queue(server_id(session.server), i[1]), i[2]) for i in items]
    wanted = await _wanted(node, session, refs)
    return Page(wanted, _behind(items, limit))


def _behind(items: Sequence[Any], limit: int) -> Place | None:
    if len(items) < limit:
        return None
    generation, _, record = items[-1]
    return Place(generation, int(HEAD.unpack_from(record)[3]))


async def load(node: Node, session: Session, refs: Sequence[Queue]) -> list[Wanted]:
    """See `Store.load`."""
    keys, who = speaking(node, session)
    mine = [ref for ref in refs if ref.server == server_id(session.server)]
    records = await node.run("load", keys, *who, *(ref.notifier_id for ref in mine))
    found = [(ref, record) for ref, record in zip(mine, records, strict=True) if record is not None]
    return await _wanted(node, session, [(ref, r) for ref, r in found if _may_be_wanted(r)])


def _may_be_wanted(record: bytes) -> bool:
    """Or it is cut, which is to be told."""
    return len(record) < HEAD.size or (record[0] <= _ACTIVE and not record[1])


async def _wanted(node: Node, session: Session, found: Iterable[tuple[Queue, bytes]]) -> list[Wanted]:
    generation = node.state.generations.get(session.server, 0)
    wanted: list[Wanted] = []
    damaged: list[Queue] = []
    for ref, record in found:
        try:
            kept = row(record)
            opened = node.state.sealer.open(kept.key, NOTIFIER_KEY + kept.subscription_id)
        except (DamagedError, SealingError):
            damaged.append(ref)
            continue
        status, _, association, *_ = HEAD.unpack_from(record)
        has = association == generation > 0
        wanted.append(Wanted(ref, has, status != _ACTIVE, ref.notifier_id, opened))
    await set_queues_aside(node, damaged)
    return wanted


async def to_audit(
    node: Node, after: Cursor | None, limit: int, silent_for: float
) -> tuple[list[ToAudit], Cursor | None]:
    """See `Store.to_audit`. A cursor is (id of the server, generation, number)."""
    servers = sorted(await node.known())
    begin, *place = after or (b"", *_START)
    found: list[tuple[Queue, bytes, bytes, bytes]] = []
    damaged: list[Queue] = []
    cursor: Cursor | None = None
    for server in servers:
        if server < begin or cursor is not None:
            continue
        start = place if server == begin else list(_START)
        asked = limit - len(found)
        packed, items = await node.run("wanted", [node.names.server(server)], *start, asked)
        for _, notifier_id, record in items:
            if token := owner(record):
                found.append((Queue(server, notifier_id), packed, token, record))
            else:
                damaged.append(Queue(server, notifier_id))
        if len(items) >= asked:
            generation, _, record = items[-1]
            cursor = (server, generation, int(HEAD.unpack_from(record)[3]))
    await set_queues_aside(node, damaged)
    silent_since = node.now() - silent_for
    heard = [await _heard(node, ref, token, record) for ref, _, token, record in found]
    return [ToAudit(r, address(p), at < silent_since) for (r, p, *_), at in zip(found, heard, strict=True)], cursor


async def _heard(node: Node, ref: Queue, token: bytes, record: bytes) -> float:
    """When something arrived for a token's queue, or it was subscribed."""
    value = await node.database.command(
        b"HGET", node.names.notifications(token), ref.packed, key=node.names.shard(token), writes=False
    )
    whole = len(value or b"") >= STAMP.size
    return float(STAMP.unpack_from(value)[2] if whole else HEAD.unpack_from(record)[4])


# --- writing


async def confirm(node: Node, session: Session, answers: Sequence[Confirmed]) -> None:
    """See `Store.confirm`."""
    keys, who = speaking(node, session)
    words: list[Any] = []
    for a in answers:
        ref: Any = a.ref
        has = "" if a.associated is None else "1" if a.associated else "0"
        words += (ref.notifier_id, NUMBERS[a.status], a.error, has, ids_hash([ref.notifier_id]))
    await node.run("confirm", keys, *who, node.state.generations.get(session.server, 0), *words)


async def end(node: Node, session: Session, notifier_ids: Sequence[bytes], status: SubscriptionStatus) -> int:
    """See `Store.end`."""
    keys, who = speaking(node, session)
    words = [word for i in notifier_ids for word in (i, ids_hash([i]))]
    return int(await node.run("finish", keys, *who, NUMBERS[status], *words))


# --- services


def _state(values: Sequence[Any], *, changed: bool = False) -> ServiceState:
    count, ids, released, released_ids = values
    return ServiceState(max(0, count - released), released, changed, ids, released_ids)


async def begin(node: Node, session: Session, service_id: bytes | None) -> ServiceState:
    """See `Store.begin`."""
    keys, who = speaking(node, session)
    generation, changed, values = await node.run("begin", keys, *who, service_id or b"")
    if generation:
        node.state.generations.put(session.server, generation)
    else:
        node.state.generations.drop(session.server)
    return _state(values, changed=bool(changed))


async def service_state(node: Node, session: Session) -> ServiceState:
    """See `Store.service_state`."""
    keys, who = speaking(node, session)
    return _state(await node.run("service_state", keys, *who))


async def reassociate(node: Node, session: Session) -> ServiceState:
    """See `Store.reassociate`."""
    keys, who = speaking(node, session)
    generation, values = await node.run("reassociate", keys, *who)
    if session.server in node.state.generations:
        node.state.generations.put(session.server, generation)
    return _state(values)


async def set_released(node: Node, session: Session, count: int, ids_hash: bytes | None) -> None:
    """See `Store.set_released`."""
    keys, who = speaking(node, session)
    await node.run("set_released", keys, *who, count, ids_hash or b"")


async def certificate(node: Node, server: ServerAddress, make: Callable[[], ServiceCertificate]) -> ServiceCertificate:
    """See `Store.service_certificate`."""
    name = key(node, server)
    context = SERVICE_KEY + server_id(server)
    chain, sealed = await node.database.command(b"HMGET", name, b"chain", b"key", key=name, writes=False)
    if chain is not None:
        try:
            return ServiceCertificate(chain, node.state.sealer.open(sealed, context))
        except SealingError:
            pass
    new = make()
    await node.know(server)
    args = (node.ahead, server.plain.encode(), new.chain, node.state.sealer.seal(new.key, context), sealed or b"")
    chain, sealed = await node.run("keep_certificate", [name], *args)
    return ServiceCertificate(chain, node.state.sealer.open(sealed, context))


# --- what was lost on the way


async def mark_lost(
    node: Node, session: Session, after: Cursor | None, *, limit: int, within: float
) -> tuple[int, Cursor | None]:
    """See `Store.mark_lost`."""
    s = node.state
    keys, who = speaking(node, session)
    items = await node.run("page", keys, *who, *(after or _START), _ALL, limit)
    latest = s.steady - _LOST_EVERY
    for token in [token for token, at in s.lost.items() if at <= latest]:
        s.lost.drop(token)
    asked = dict.fromkeys(token for item in items if (token := owner(item[2])))
    tokens = [token for token in asked if token not in s.lost][: max(0, _MAX_LOST - len(s.lost))]
    by_shard = node.by_shard(tokens)
    parts: dict[bytes, list[Word]] = {shard: [len(ids), *ids] for shard, ids in by_shard.items()}
    marked = 0
    for *found, lanes in await node.run_on("lost", [node.ahead, math.ceil(within)], parts, by_shard):
        s.lost.put_all(dict.fromkeys(found, s.steady))
        marked += len(found)
        node.made_due(found)
        node.owe(lanes)
    return marked, _behind(items, limit)
