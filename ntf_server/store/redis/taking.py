"""Which tokens are next, in the Redis store: oldest first, lanes in turn."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from ntf_server.store.contract import Places, StoreError
from ntf_server.store.memory import Round, provider_of
from ntf_server.store.records import Backlog, Claim, Taken
from ntf_server.store.redis.asking import Word
from ntf_server.store.redis.content import Content, claim
from ntf_server.store.redis.deliveries import park
from ntf_server.store.redis.node import Node
from smp_bridge.ntf import Provider

_LANES: Final = 256  # of a shard, that are looked at at once
_LOOKS: Final = 64  # at so many of them, in one take
_AT_ONCE: Final = 32  # lanes, whose tokens are asked for together
_QUANTUM: Final = 8  # tokens of a lane, before others have their turn
_NEVER: Final = float("inf")

_Row = tuple[float, bytes, bytes, bool]  # when it was due, token, lane, whether the store says so or memory


async def take(node: Node, provider: Provider, places: Places) -> Taken:
    """See `Store.take`."""
    s = node.state
    s.ripen()
    if provider is Provider.WEB_PUSH:
        claims, next_at, now = await _in_turn(node, places)
    else:
        claims, next_at, now = await _oldest(node, {provider.encode(): places.total}, places.total)
    next_in = None if next_at == _NEVER else max(0.0, (next_at - now) / 1000)
    ripe_in = s.next_ripe(provider)
    if any(provider_of(r.lane) is provider and not node.is_silent(token) for token, r in s.ready.items()):
        ripe_in = 0.0  # or another provider's take has found it ripe while this one waited for answers
    if ripe_in is not None:
        next_in = ripe_in if next_in is None else min(next_in, ripe_in)
    return Taken(claims, next_in)


def _ready(node: Node, lanes: Mapping[bytes, int]) -> list[_Row]:
    ready = node.state.ready.items()
    return [(r.since, token, r.lane, False) for token, r in ready if r.lane in lanes and not node.is_silent(token)]


async def _oldest(node: Node, limits: Mapping[bytes, int], total: int) -> tuple[list[Claim], float, float]:
    """Claims of so many tokens of each lane that are due, whether the store says so or memory; when there is more, and
    now, in ms.
    """
    s = node.state
    rows = _ready(node, limits)
    if total <= 0 or not (node.held or rows):
        return [], (_NEVER if not rows else s.now_ms), s.now_ms
    words: list[Word] = [word for lane, limit in limits.items() for word in (lane, max(0, limit) + 1)]
    next_at, now, order = _NEVER, float(s.now_ms), list(limits)
    answers = await node.ask_some("peek", [node.ahead, *words], {shard: [] for shard in node.giving})
    for first, *answer in answers:
        now = float(first)
        for i in range(0, len(answer), 2):
            lane = order[i // 2 % len(order)]
            found, behind = answer[i : i + 2]
            rows += [(float(found[n + 1]), found[n], lane, True) for n in range(0, len(found), 2)]
            if behind:
                next_at = min(next_at, float(behind))
    chosen, left = _choose(rows, limits, total)
    behind_ = {lane for _, _, lane, is_due in left if is_due}
    for lane in limits:
        if lane in behind_:
            s.owe(lane)
        else:
            s.backlog.drop(lane)
    next_at = min((row[0] for row in left), default=next_at) if left else next_at
    return await _claim(node, chosen), next_at, now


def _choose(rows: Sequence[_Row], limits: Mapping[bytes, int], total: int) -> tuple[list[_Row], list[_Row]]:
    """The oldest ones, as many of each lane as it may have; and the others."""
    room = dict(limits)
    chosen: list[_Row] = []
    left: list[_Row] = []
    for row in sorted(rows):
        if len(chosen) < total and room[row[2]] > 0:
            room[row[2]] -= 1
            chosen.append(row)
        else:
            left.append(row)
    return chosen, left


async def _claim(node: Node, rows: Sequence[_Row]) -> list[Claim]:
    s = node.state
    # What another take has had meanwhile, or asks for, is its.
    rows = [row for row in rows if row[1] not in node.taking and (row[3] or row[1] in s.ready)]
    rows = [row for row in rows if not node.is_silent(row[1])]
    if not rows:
        return []
    is_due = {token: due for _, token, _, due in rows}
    fences = node.recovered
    parts: dict[bytes, list[Word]] = {}
    by_shard = node.by_shard(is_due)
    for shard, tokens in by_shard.items():
        due, ready = ([t for t in tokens if is_due[t] is kind] for kind in (True, False))
        parts[shard] = [fences.get(shard, b"none"), len(due), len(ready), *due, *ready]
    for _, token, _, due_ in rows:
        if not due_:
            s.ready.drop(token)  # or another take would have it too
    mark = node.handed.next_call()
    head = (node.ahead, s.times.verification_ttl, s.times.message_ttl, mark)
    node.taking |= is_due.keys()
    try:
        answers = (await node.run_some("take", head, parts, by_shard)).answers
    except BaseException:
        node.strand()  # they may be claimed by nobody
        raise
    finally:
        node.taking -= is_due.keys()
    order = {token: i for i, (_, token, _, _) in enumerate(rows)}
    contents = sorted((Content.of(c) for answer in answers for c in answer), key=lambda c: order[c.token])
    return await claim(node, contents, mark)


async def _in_turn(node: Node, places: Places) -> tuple[list[Claim], float, float]:
    """From lane after lane, from where the last take stopped; then what else there is room for."""
    s = node.state
    lanes, next_at, now = await _lanes(node)
    waiting: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for token, ready in s.ready.items():
        if provider_of(ready.lane) is Provider.WEB_PUSH and not node.is_silent(token):
            waiting[ready.lane].append(token)
    start = s.rounds.setdefault(Provider.WEB_PUSH, Round(b"", b""))
    order = sorted({*lanes, *waiting}, key=lambda lane: (lane <= start.cursor, lane))
    rooms = {lane: room for lane in order if (room := places.room(lane[2:])) > 0}
    parked = [token for lane, tokens in waiting.items() if lane not in rooms for token in tokens]
    if parked:
        for token in parked:
            s.ready.drop(token)
        await park(node, parked)
    claims: list[Claim] = []
    turns = [{lane: min(room, _QUANTUM) for lane, room in rooms.items()}]
    turns.append({lane: room - _QUANTUM for lane, room in rooms.items() if room > _QUANTUM})
    for number, turn in enumerate(turns):
        left = list(turn.items())
        while left and len(claims) < places.total:
            some = _some(left, places.total - len(claims))
            try:
                found, first, now = await _oldest(node, some, places.total - len(claims))
            except StoreError:
                if not claims:
                    raise
                return claims, now, now  # who asked gets those that are claimed, and tries again
            claims += found
            next_at = min(next_at, first)
            if number == 0:
                start.cursor = next(reversed(some))
        if left:
            next_at = min(next_at, now)
    return claims, next_at, now


def _some(left: list[tuple[bytes, int]], total: int) -> dict[bytes, int]:
    """As many lanes of these as may fill the places; they are taken off."""
    out: dict[bytes, int] = {}
    count = 0
    while left and count < total and len(out) < _AT_ONCE:
        lane, limit = left.pop(0)
        out[lane] = limit
        count += limit
    return out


async def _lanes(node: Node) -> tuple[dict[bytes, float], float, float]:
    """All that have something due now, and since when; when another one has, and now, in ms."""
    s = node.state
    found: dict[bytes, float] = {}
    next_at, now = _NEVER, float(s.now_ms)
    for look in range(_LOOKS):
        full = False
        head = [node.ahead, Provider.WEB_PUSH.encode(), look * _LANES, _LANES]
        for first, *answer in await node.ask_some("lanes", head, {shard: [] for shard in node.giving}):
            now = float(first)
            for i in range(0, len(answer), 2):
                pairs, behind = answer[i : i + 2]
                for n in range(0, len(pairs), 2):
                    found[pairs[n]] = min(found.get(pairs[n], _NEVER), float(pairs[n + 1]))
                full = full or len(pairs) == 2 * _LANES
                if behind:
                    next_at = min(next_at, float(behind))
        if not full:
            break
    return found, next_at, now


async def backlog(node: Node, provider: Provider) -> Backlog:
    """See `Store.backlog`: of shards that this node holds and can have now."""
    s, lane = node.state, provider.encode()
    answers = await node.ask_some("backlog", [node.ahead, lane], {shard: [] for shard in node.fences})
    due, waiting = sum(a[0] for a in answers), sum(a[1] for a in answers)
    return s.with_ready(lane, s.now_ms, Backlog(due, waiting, max([0, *(a[2] for a in answers)]) / 1000))
