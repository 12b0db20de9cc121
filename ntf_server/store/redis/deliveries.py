"""Notifications in, and what came of claims, in the Redis store."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final

from ntf_server.store.contract import PartlyUnavailableError, Places, StoreError
from ntf_server.store.memory import Held, provider_of
from ntf_server.store.records import Claim, Ended, Entry, Notification, Notified, Outcome, Session
from ntf_server.store.redis.asking import Word
from ntf_server.store.redis.buckets import owners
from ntf_server.store.redis.content import Content, claim, count_expired, rest
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.node import Node
from ntf_server.store.redis.quarantine import set_queues_aside
from ntf_server.store.redis.rows import DamagedError, Queue, Row, arrival, push_tail, row, stamp
from smp_bridge.ntf import Provider

_MAX_REASON: Final = 200  # characters of a provider's words that are kept
_BARRED: Final = 50  # lanes that a script is told of
_GONE, _ELSEWHERE = 0, 2
_REFUSED, _MORE = 0, 2


# --- NMSG


async def notify(
    node: Node, session: Session, notifications: Sequence[Notification], places: Mapping[Provider, Places]
) -> Notified:
    """See `Store.notify`."""
    s = node.state
    s.arrived += len(notifications)
    s.ripen()
    server = server_id(session.server)
    ids = [n.notifier_id for n in notifications]
    address, records = await owners(node, session, ids)
    by_token: defaultdict[bytes, list[tuple[Notification, Row]]] = defaultdict(list)
    damaged: list[Queue] = []
    unknown, unstored = 0, [n for n in notifications if n.notifier_id not in records]
    for n in notifications:
        record = records.get(n.notifier_id)
        if record is None:
            unknown += n.notifier_id in records
            continue
        try:
            found = row(record)
        except DamagedError:
            damaged.append(Queue(server, n.notifier_id))
            unknown += 1
        else:
            by_token[found.token].append((n, found))
    await set_queues_aside(node, damaged)
    by_shard = node.by_shard(by_token)
    with node.handed.under_way():
        parts = _parts(node, server, address, by_token, by_shard, free=bool(places))
        mark = node.handed.next_call()
        told = len(s.backlog) <= _BARRED
        barred = _barred(node, places)
        head: list[Word] = [node.ahead, s.times.verification_ttl, s.times.message_ttl, mark]
        head += ("1" if s.is_crowded else "", len(barred), *barred)
        some = await node.run_some("notify", head, parts, by_shard)
        order = (token for shard in some.shards for token in by_shard[shard])
        results = dict(zip(order, (result for answer in some.answers for result in answer), strict=True))
        node.made_due([token for token, result in results.items() if result == _ELSEWHERE])
        claims = await _hand_out(node, results, places, mark, told=told)
    unknown += sum(len(by_token[token]) for token, result in results.items() if result == _GONE)
    s.crowd()
    unstored += [n for token, of_token in by_token.items() if token not in results for n, _ in of_token]
    return Notified(claims, unknown, unstored)


def _parts(
    node: Node,
    server: bytes,
    address: bytes,
    by_token: Mapping[bytes, Sequence[tuple[Notification, Row]]],
    by_shard: Mapping[bytes, Sequence[bytes]],
    *,
    free: bool,
) -> dict[bytes, list[Word]]:
    """Arguments of `notify.lua` for each shard."""
    parts: dict[bytes, list[Word]] = {}
    s, giving = node.state, node.giving
    for shard, tokens in by_shard.items():
        words: list[Word] = [giving.get(shard, b""), len(tokens)]
        for token in tokens:
            rests = token in s.cooling or token in node.ending  # memory has it then, whatever there is room for
            words += (token, ("2" if rests else "1") if free else "", len(by_token[token]))
            for n, found in by_token[token]:
                arrived = arrival(n.received_at + node.shift, found.spelling or address, n.nonce, n.meta)
                words += (Queue(server, n.notifier_id).packed, stamp(n.seq) + arrived)
        parts[shard] = words
    return parts


def _barred(node: Node, places: Mapping[Provider, Places]) -> list[bytes]:
    """Lanes that something older may be due in, so that it goes first, and providers without a place; of lanes no more
    than a few.
    """
    owed = list(islice(node.state.backlog, _BARRED))
    return owed + [p.encode() for p in Provider if p not in places or places[p].total <= 0]


async def _hand_out(
    node: Node, results: Mapping[bytes, Any], places: Mapping[Provider, Places], mark: int, *, told: bool
) -> list[Claim]:
    """Claims of those that there is room for; the others are due.

    `told`: the script knew all lanes that were owed when it was called, so what it gives of others may go out.
    """
    s = node.state
    chosen: list[Content] = []
    parked: list[bytes] = []
    totals: dict[Provider, int] = {}
    rooms: dict[bytes, int] = {}
    for token, result in results.items():
        if isinstance(result, int):
            continue
        if len(result) == 1:
            node.owe(result)
            continue
        content = Content.of(result)
        if content.is_nothing:
            chosen.append(content)
            continue
        lane = content.lane
        if content.queues > 1 and token not in s.cooling:  # what comes next may be for it too
            count_expired(node, content)
            rest(node, token, lane)
            continue
        owed = not told and s.owes(lane)
        has_room = not owed and _has_room(lane, places, totals, rooms)
        if has_room or token in s.cooling or token in node.ending:
            chosen.append(content)
        else:
            count_expired(node, content)
            parked.append(token)
    claims = await claim(node, chosen, mark)
    if parked:
        try:
            await park(node, parked)
        except StoreError:
            node.strand()  # they are due later; who asked gets those that are claimed
    return claims


def _has_room(
    lane: bytes,
    places: Mapping[Provider, Places],
    totals: dict[Provider, int],
    rooms: dict[bytes, int],
) -> bool:
    """Whether a place is left; takes it."""
    provider = provider_of(lane)
    offer = places.get(provider)
    if offer is None:
        return False
    totals.setdefault(provider, offer.total)
    room = rooms.get(lane)
    if room is None:
        room = offer.room(lane[2:])
    if room <= 0 or totals[provider] <= 0:
        rooms[lane] = room
        return False
    rooms[lane] = room - 1
    totals[provider] -= 1
    return True


async def park(node: Node, tokens: Sequence[bytes]) -> None:
    """They are due in the store, no more in memory."""
    by_shard = node.by_shard(tokens)
    parts: dict[bytes, list[Word]] = {shard: [node.fence(shard), len(ids), *ids] for shard, ids in by_shard.items()}
    some = await node.run_some("park", [node.ahead, node.handed.calls], parts, by_shard)
    node.handed.strand(node.names.number_of[shard] for shard in parts.keys() - some.shards)
    for lanes in some.answers:
        node.owe(lanes)


# --- what came of it


async def record(node: Node, outcomes: Sequence[Outcome]) -> int:
    """See `Store.record`."""
    s = node.state
    refused = 0
    held: dict[bytes, tuple[Held, Outcome]] = {}
    for o in outcomes:
        token: Any = o.claim.token
        kept = s.claims.get(token)
        if kept is None or kept.claim is not o.claim or token in held:
            refused += 1
        else:
            held[token] = kept, o
    if not held:
        return refused
    for token in held:
        s.claims.drop(token)
    node.ending.update((token, kept.mark) for token, (kept, _) in held.items())
    recorded: Mapping[bytes, tuple[Held, Outcome]] = {}
    try:
        recorded, count = await _record(node, held)
    finally:
        for token, (kept, _) in held.items():
            if token not in recorded:
                s.claims.put(token, kept)  # whoever asked tries again
            del node.ending[token]
    if left := [outcome for token, (_, outcome) in held.items() if token not in recorded]:
        raise PartlyUnavailableError("shards of tokens cannot be had now", refused + count, left)
    return refused + count


async def _record(
    node: Node, held: Mapping[bytes, tuple[Held, Outcome]]
) -> tuple[Mapping[bytes, tuple[Held, Outcome]], int]:
    """Those that could be recorded, and how many of them were refused."""
    s = node.state
    parts: dict[bytes, list[Word]] = {}
    by_shard = node.by_shard(held)
    for shard, tokens in by_shard.items():
        words: list[Word] = [node.fence(shard) or b"none", len(tokens)]
        for token in tokens:
            words += _words(token, *held[token])
        parts[shard] = words
    head = (node.ahead, s.times.verification_ttl, s.times.message_ttl)
    refused = 0
    results: list[Any] = []
    some = await node.run_some("record", head, parts, by_shard)
    order = [token for shard in some.shards for token in by_shard[shard]]
    for *answer, lanes in some.answers:
        results += answer
        for lane, ms in lanes:
            provider, wait = provider_of(lane), max(0.0, int(ms) / 1000)
            if wait <= 0:
                s.owe(lane)
            s.effects.due(provider, wait)
    for token, result in zip(order, results, strict=True):
        kept, outcome = held[token]
        if result == _REFUSED:
            refused += 1
            continue
        how = result
        if not isinstance(result, int):
            how, *expired = result
            s.effects.count_expired(*expired)
        if outcome.ended in {Ended.DELIVERED, Ended.EXPIRED} and token not in s.claims:
            s.pushed(token, kept.lane, again=how == _MORE or token in s.cooling)
    return {token: held[token] for token in order}, refused


def _words(token: bytes, held: Held, o: Outcome) -> list[Word]:
    """Arguments of `record.lua` for one claim."""
    c = o.claim
    sent: Sequence[Entry] = [e for e in o.held if not e.sent] if o.ended is Ended.DELIVERED else ()
    tail = push_tail(c.push_id, o.ended.value, o.reason[:_MAX_REASON])
    detail: Word = max(0, round(o.after * 1000))
    if o.ended is Ended.DELIVERED:
        detail = int(c.kind)
    elif o.ended is Ended.DEAD:
        detail = o.dead.value if o.dead else ""
    words: list[Word] = [token, held.mark, c.registration, o.ended.value, tail, detail, len(sent)]
    for e in sent:
        ref: Any = e.subscription
        words += (ref.packed, stamp(e.seq))
    return words
