"""SMP servers and what is subscribed on them, in the Redis store.

Each is held by one node, under a lease with a fence.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from ntf_server.store.contract import PartlyUnavailableError, StoreUnavailableError
from ntf_server.store.records import (
    Change,
    ChangeKind,
    Confirmed,
    Cursor,
    Lost,
    Page,
    ServiceCertificate,
    ServiceState,
    Session,
    Share,
    ToAudit,
    Wanted,
)
from ntf_server.store.redis import buckets, changes
from ntf_server.store.redis.asking import Word
from ntf_server.store.redis.database import CLOSE
from ntf_server.store.redis.holders import NOBODY
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.node import LEASE, Node
from ntf_server.store.redis.quarantine import set_queues_aside
from ntf_server.store.redis.rows import HEAD, NUMBERS, STAMP, DamagedError, Queue, address, owner, row
from ntf_server.store.sealing import NOTIFIER_KEY, SERVICE_KEY, SealingError
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import SubscriptionStatus
from smp_bridge.service import ids_hash, xor

_LEASE_MS: Final = round(LEASE * 1000)
_LOST_EVERY: Final = 3600.0  # seconds between two checks of a token for what servers sent in vain
_MAX_LOST: Final = 100_000  # such checks in that time, of all tokens
_ACTIVE: Final = NUMBERS[SubscriptionStatus.ACTIVE]
_TRIES: Final = 20
_ENDS: Final = 12  # bytes that tell ENDs from others, as finish.lua takes them
_UNSETTLED: Final = (b"old", b"free")  # servers that have no node, or are about to have none


# --- who speaks for a server


def key(node: Node, server: ServerAddress) -> bytes:
    """Of its hash."""
    return node.names.server(server_id(server))


async def acquire(node: Node, server: ServerAddress) -> Session | None:
    """See `Store.acquire`."""
    await node.know(server)
    fence = await buckets.acquire(node, server_id(server), _LEASE_MS, server.plain.encode())
    if fence is None:
        return None
    node.state.generations.drop(server)
    node.state.fences.put(server, fence)
    return Session(server, fence)


async def renew(node: Node, sessions: Sequence[Session]) -> list[Session]:
    """See `Store.renew`."""
    named = [(key(node, session.server), session) for session in sessions]
    newest = dict(sorted(named, key=lambda pair: pair[1].fence))  # of one server
    fences: dict[bytes, Sequence[Word]] = {name: [session.fence] for name, session in newest.items()}
    kept = await node.run_by_key("renew", (node.ahead, node.id, _LEASE_MS), fences)
    lost = [session for name, session in named if newest[name] is not session or not kept.get(name, True)]
    if left := [session for name, session in newest.items() if name not in kept]:
        raise PartlyUnavailableError("SMP servers cannot be had now", lost, left)
    return lost


async def release(node: Node, session: Session) -> None:
    """See `Store.release`."""
    done = await node.run("release", [key(node, session.server)], node.ahead, node.id, session.fence)
    if node.state.fences.get(session.server) == session.fence:
        node.state.fences.drop(session.server)
        node.state.generations.drop(session.server)
    server = server_id(session.server)
    wanted, _ = (await buckets.are_wanted(node, [server])).get(server, (True, 0)) if done else (False, 0)
    if wanted:
        await changes.tell(node.database, node.names, Change(ChangeKind.FREE, session.server))


async def release_all(node: Node) -> None:
    """All that this node has. In a cluster the others do not wait for one that cannot be had."""
    held = [Session(server, fence) for server, fence in node.state.fences.items()]
    releasing = asyncio.gather(*(release(node, session) for session in held), return_exceptions=True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE):
            await releasing


async def announce(node: Node, session: Session, *, whole: bool) -> None:
    """See `Store.announce`."""
    keys, args = speaking(node, session)
    await node.run("announce", keys, *args, "1" if whole else "")


async def share(node: Node, sessions: Sequence[Session]) -> Share:
    """See `Store.share`."""
    node.rendezvous.weights = await weights(node)
    node.holders.live([other for other in node.rendezvous.nodes if other != node.id])
    servers = await node.known_lately()
    ours = {server_id(session.server): session for session in sessions}
    look = node.holders.to_look_at(server for server in servers if server not in ours)
    found: dict[bytes, bytes] = {}
    while look:
        without, look = await _look(node, look)
        found |= without
    take = dict.fromkeys(server for server, how in found.items() if _is_to_take(node, server, how))  # in this order
    unsettled = any(how in _UNSETTLED and server not in take for server, how in found.items())
    give = [session for server, session in ours.items() if not node.is_mine(server)]
    return Share([address(servers[server]) for server in take], give, unsettled)


async def _look(node: Node, servers: Sequence[bytes]) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Which of these that are wanted have no node, and how that is (`holders.lua`); what is to be looked at as well."""
    keys = {node.names.server(server): server for server in servers}
    answers = await node.run_by_key("holders", (node.ahead, _LEASE_MS), dict.fromkeys(keys, ()))
    hows = {keys[name]: how for name, how in answers.items()}
    held = {server: how[1:] for server, how in hows.items() if how.startswith(b"=")}
    wanted = await buckets.are_wanted(node, (server for server in hows if server not in held))
    held |= {server: NOBODY for server, (is_wanted, _) in wanted.items() if not is_wanted}
    without = {server: hows[server] for server, (is_wanted, _) in wanted.items() if is_wanted}
    return without, node.holders.saw(servers, held)


async def weights(node: Node) -> dict[bytes, int]:
    """About how many queues the large SMP servers have, by their ids."""
    name = node.names.weights
    found = await node.database.command(b"HGETALL", name, key=name, writes=False)
    return dict(zip(found[::2], map(int, found[1::2]), strict=True))


def _is_to_take(node: Node, server: bytes, how: bytes) -> bool:
    return (how == b"late" and not node.has_left) or (how in (b"new", b"free") and node.is_mine(server))


def speaking(node: Node, session: Session) -> tuple[list[bytes], tuple[Word, ...]]:
    """A server's key, and the arguments by which scripts know there that the session counts."""
    return [key(node, session.server)], (node.ahead, node.id, session.fence)


# --- reading


async def wanted_servers(node: Node) -> list[ServerAddress]:
    """See `Store.servers`."""
    known = await node.known()
    found = await buckets.are_wanted(node, known)
    return [address(known[server]) for server, (wanted, _) in found.items() if wanted]


async def is_wanted(node: Node, server: ServerAddress) -> bool:
    """See `Store.is_wanted`."""
    wanted, _ = await buckets.is_wanted(node, server_id(server))
    return wanted


async def page(node: Node, session: Session, after: Cursor | None, limit: int, *, associated: bool) -> Page:
    """See `Store.page`."""
    generation = node.state.generations.get(session.server, 0)
    server, who = server_id(session.server), buckets.who(node, session)
    if associated:
        first, below = (generation, -1), generation + 1 if generation else 0
        items = await buckets.walk(node, server, who, after, limit, first=first, below=below)
    else:
        items = await buckets.walk(node, server, who, after, limit, below=generation or buckets.ALL)
    wanted = await _wanted(node, session, ((Queue(server, i.notifier_id), i.record) for i in items))
    return Page(wanted, buckets.behind(items, limit))


async def load(node: Node, session: Session, refs: Sequence[Queue]) -> list[Wanted]:
    """See `Store.load`."""
    mine = [ref for ref in refs if ref.server == server_id(session.server)]
    records = await buckets.load(node, session, [ref.notifier_id for ref in mine])
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
    """See `Store.to_audit`. A cursor is (id of the server, place in it). What cannot be had waits for the next."""
    known = await node.known()
    begin, place = after or (b"", None)
    found: list[tuple[Queue, bytes, bytes, bytes]] = []
    cursor: Cursor | None = None
    for server in sorted(server for server in known if server >= begin):
        asked = limit - len(found)
        try:
            items = await buckets.walk(node, server, buckets.ANYBODY, place if server == begin else None, asked)
        except StoreUnavailableError:
            if node.database.spans:
                raise
            continue
        damaged: list[Queue] = []
        for item in items:
            ref = Queue(server, item.notifier_id)
            if token := owner(item.record):
                found.append((ref, known[server], token, item.record))
            else:
                damaged.append(ref)
        await set_queues_aside(node, damaged)
        if (behind := buckets.behind(items, asked)) is not None:
            cursor = (server, behind)
            break
    silent_since = node.now() - silent_for
    found = [item for item in found if not node.is_silent(item[2])]
    heard = [await _heard(node, ref, token, record) for ref, _, token, record in found]
    return [ToAudit(r, address(p), at < silent_since) for (r, p, *_), at in zip(found, heard, strict=True)], cursor


async def _heard(node: Node, ref: Queue, token: bytes, record: bytes) -> float:
    """When something arrived for a token's queue, or it was subscribed."""
    [value] = await node.fields(token, [ref.packed])
    whole = len(value or b"") >= STAMP.size
    return float(STAMP.unpack_from(value)[2] if whole else HEAD.unpack_from(record)[4])


# --- writing


async def confirm(node: Node, session: Session, answers: Sequence[Confirmed]) -> None:
    """See `Store.confirm`."""
    parts: dict[bytes, list[Word]] = {}
    for a in answers:
        ref: Any = a.ref
        has = "" if a.associated is None else "1" if a.associated else "0"
        words = parts.setdefault(buckets.bucket_of(node, ref), [0])
        words[0] = int(words[0]) + 1
        words += (ref.notifier_id, NUMBERS[a.status], a.error, has, ids_hash([ref.notifier_id]))
    head = (*buckets.who(node, session), node.state.generations.get(session.server, 0))
    await node.run_on("confirm", head, parts)


async def end(
    node: Node, session: Session, notifier_ids: Sequence[bytes], status: SubscriptionStatus, number: int
) -> int:
    """See `Store.end`."""
    ids = buckets.by_bucket(node, server_id(session.server), notifier_ids)
    parts: dict[bytes, Sequence[Word]] = {
        key: [len(some), *(word for i in some for word in (i, ids_hash([i])))] for key, some in ids.items()
    }
    head = (node.ahead, *buckets.who(node, session), NUMBERS[status], number.to_bytes(_ENDS))
    answers = await node.run_on("finish", head, parts)
    found = [here for answer in answers for here in answer]
    unknown = [i for i, here in zip((i for some in ids.values() for i in some), found, strict=True) if not here]
    if unknown and session.server in node.state.generations:  # the server counts them no more either
        await _put_released(node, session, lambda state: _without(state, unknown))
    return sum(found)


def _without(state: ServiceState, unknown: Sequence[bytes]) -> tuple[int, bytes]:
    gone = unknown[: state.released]
    return state.released - len(gone), xor(state.released_hash, ids_hash(gone))


# --- services


class _Apart(NamedTuple):
    """What of a service no bucket counts: how many it has, their hash, how many were released, and theirs."""

    associated: int
    ids: bytes
    released: int
    released_ids: bytes


async def _state(
    node: Node, session: Session, values: Sequence[Any], *, changed: bool = False
) -> tuple[ServiceState, _Apart]:
    """`values`: what scripts give of a service."""
    generation, since, *some, listed = values
    apart = _Apart(*some)
    count, ids, released, released_ids = apart
    head = (*buckets.who(node, session), generation, since)
    parts = buckets.empty_parts(node, server_id(session.server), buckets.numbers(listed))
    for n, x, rel_n, rel_x in await node.run_on("counts", head, parts):
        count, ids, released, released_ids = count + n, xor(ids, x), released + rel_n, xor(released_ids, rel_x)
    return ServiceState(max(0, count), released, changed, xor(ids, released_ids), released_ids), apart


async def begin(node: Node, session: Session, service_id: bytes | None) -> ServiceState:
    """See `Store.begin`."""
    keys, args = speaking(node, session)
    changed, values = await node.run("begin", keys, *args, service_id or b"")
    if service_id:
        node.state.generations.put(session.server, values[0])
    else:
        node.state.generations.drop(session.server)
    state, _ = await _state(node, session, values, changed=bool(changed))
    return state


async def service_state(node: Node, session: Session) -> ServiceState:
    """See `Store.service_state`."""
    keys, args = speaking(node, session)
    state, _ = await _state(node, session, await node.run("service_state", keys, *args))
    return state


async def reassociate(node: Node, session: Session) -> ServiceState:
    """See `Store.reassociate`."""
    keys, args = speaking(node, session)
    values = await node.run("reassociate", keys, *args)
    if session.server in node.state.generations:
        node.state.generations.put(session.server, values[0])
    state, _ = await _state(node, session, values)
    return state


async def set_released(node: Node, session: Session, count: int, ids_hash: bytes | None) -> None:
    """See `Store.set_released`."""
    none = bytes(16)
    await _put_released(node, session, lambda state: (count, ids_hash or (state.released_hash if count else none)))


async def _put_released(node: Node, session: Session, put: Callable[[ServiceState], tuple[int, bytes]]) -> None:
    """Have so many be released. What is deleted meanwhile comes on top, as its bucket counts it."""
    keys, args = speaking(node, session)
    for _ in range(_TRIES):
        state, apart = await _state(node, session, await node.run("service_state", keys, *args))
        count, ids = put(state)
        more, more_ids = count - state.released, xor(ids, state.released_hash)
        new = (apart.released + more, xor(apart.released_ids, more_ids))
        if await node.run("set_released", keys, *args, apart.released, apart.released_ids, *new):
            return
    raise StoreUnavailableError("what a service had is counted by others all the time")


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


async def mark_lost(node: Node, session: Session, after: Cursor | None, *, limit: int, within: float) -> Lost:
    """See `Store.mark_lost`."""
    s = node.state
    items = await buckets.walk(node, server_id(session.server), buckets.who(node, session), after, limit)
    asked = dict.fromkeys(token for item in items if (token := owner(item.record)))
    later = s.checked_lately(asked, within, _LOST_EVERY)
    new = [token for token in asked if token not in s.lost]
    tokens = new[: max(0, _MAX_LOST - len(s.lost))]
    by_shard = node.by_shard(tokens)
    parts: dict[bytes, list[Word]] = {shard: [len(ids), *ids] for shard, ids in by_shard.items()}
    marked = 0
    some = await node.run_some("lost", [node.ahead, math.ceil(within)], parts, by_shard)
    for *found, lanes in some.answers:
        s.lost.put_all(dict.fromkeys(found, s.steady))
        marked += len(found)
        node.made_due(found)
        node.owe(lanes)
    if len(some.shards) < len(parts):  # to be asked again; those that were marked are not, by then
        raise StoreUnavailableError("shards of tokens cannot be had now")
    return Lost(marked, buckets.behind(items, limit), later if len(tokens) == len(new) else _LOST_EVERY)
