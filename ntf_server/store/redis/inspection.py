"""What operators look at in the Redis store: of all nodes, whoever holds what."""

from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from msgspec import structs

from ntf_server.store.inspection import DAMAGED, Counted, Registered
from ntf_server.store.records import Ref
from ntf_server.store.redis.buckets import bucket_of, listed
from ntf_server.store.redis.node import Node
from ntf_server.store.redis.rows import HEAD, STATUSES, DamagedError, Queue, address, pushed, queue, registration
from ntf_server.store.sealing import fingerprint as fingerprint_of
from smp_bridge.ntf import InvalidReason, Provider

Do = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]

_AT_ONCE: Final = 100  # tokens that one script looks at, and queues that one command reads
_FEW: Final = 20  # tokens whose queues one script looks at
_NO_PROVIDER: Final = Provider.APNS_NULL  # of a registration that cannot be read at all


class RedisInspection:
    """Implements `Inspection`. `do`: the store's way to the node."""

    def __init__(self, node: Node, do: Do) -> None:
        self._node = node
        self._do = do

    async def tokens(
        self, after: str | None, limit: int, *, fingerprint: str = ""
    ) -> tuple[list[Registered], str | None]:
        """See `Inspection`. A cursor is the shard's number and the token id."""
        found, cursor = await self._do(lambda: _tokens(self._node, after, limit))
        return [r for r in found if not fingerprint or r.fingerprint == fingerprint], cursor

    async def statuses(self, token: Ref) -> Mapping[str, int]:
        """See `Inspection`."""
        found: Mapping[str, int] = await self._do(lambda: _statuses(self._node, token))
        return found

    async def heard(self, after: str | None, limit: int, spans: Sequence[int]) -> tuple[list[int], str | None]:
        """See `Inspection`: by their tokens. A cursor is as that of `tokens`."""
        found: tuple[list[int], str | None] = await self._do(lambda: _heard(self._node, after, limit, spans))
        return found

    async def subscriptions(self, after: str | None, limit: int) -> tuple[list[Counted], str | None]:
        """See `Inspection`. A cursor is the server's id, the bucket's number and the place in it."""
        found: tuple[list[Counted], str | None] = await self._do(lambda: _subscriptions(self._node, after, limit))
        return found


def _place(after: str | None) -> tuple[int, bytes]:
    """Number of a shard, and the token behind which to go on in it."""
    number, _, last = (after or "0:").partition(":")
    return int(number), bytes.fromhex(last)


def _cursor(node: Node, number: int, last: bytes) -> str | None:
    """The same as text; None: there is no such shard."""
    return f"{number}:{last.hex()}" if number < len(node.names.shards) else None


async def _heard(node: Node, after: str | None, limit: int, spans: Sequence[int]) -> tuple[list[int], str | None]:
    number, last = _place(after)
    found, left = [0] * len(spans), limit
    while number < len(node.names.shards) and left > 0:
        asked = min(left, _FEW)
        count, last, *some = await node.run("heard", [node.names.shards[number]], node.ahead, last, asked, *spans)
        found = [a + b for a, b in zip(found, some, strict=True)]
        left -= max(1, count)  # also a shard without any takes its time
        if count < asked:
            number, last = number + 1, b""
    return found, _cursor(node, number, last)


async def _tokens(node: Node, after: str | None, limit: int) -> tuple[list[Registered], str | None]:
    number, last = _place(after)
    found: list[Registered] = []
    while number < len(node.names.shards) and len(found) < limit:
        asked = min(limit - len(found), _AT_ONCE)
        rows = await node.run("survey", [node.names.shards[number]], last, asked)
        found += [_registered(node, *row) for row in rows]
        if len(rows) < asked:
            number, last = number + 1, b""
        else:
            last = rows[-1][0]
    return found, _cursor(node, number, last)


def _registered(node: Node, token: bytes, fields: list[Any], queues: int) -> Registered:
    status, reason, period, active_at, damaged, packed, registered_at, push = fields
    provider, lookup = _NO_PROVIDER, b""
    try:
        kept = registration(packed or b"")
        provider, lookup = Provider(kept.provider), kept.lookup
        last = pushed(push) if push else None
    except (DamagedError, ValueError):
        last, damaged = None, b"1"
    return Registered(
        token,
        token,
        provider,
        fingerprint_of(lookup),
        DAMAGED if damaged is not None or status is None else status.decode(),
        InvalidReason(reason.decode()) if reason else None,
        int(period or 0),
        int(registered_at or 0) - node.shift,
        int(active_at or 0) - node.shift,
        queues,
        None if last is None else structs.replace(last, at=last.at - node.shift),
    )


async def _statuses(node: Node, token: Any) -> Mapping[str, int]:
    key, shard = node.names.queues_of(token), node.names.shard(token)
    found: Tally[str] = Tally()
    cursor = b"0"
    while True:
        words = (b"SSCAN", key, cursor, b"COUNT", _AT_ONCE)
        cursor, some = await node.database.command(*words, key=shard, writes=False)
        refs: list[Queue] = [queue(packed) for packed in some]
        calls = [node.call("find", [bucket_of(node, ref)], ref.notifier_id) for ref in refs]
        for record, _, _ in await node.database.run_all(calls) if calls else ():
            if record is not None:
                found[_status(record)] += 1
        if cursor == b"0":
            return found


def _status(record: bytes) -> str:
    if len(record) < HEAD.size or record[1] or record[0] >= len(STATUSES):
        return DAMAGED
    return STATUSES[record[0]].value


async def _subscriptions(node: Node, after: str | None, limit: int) -> tuple[list[Counted], str | None]:
    begin, number, place = (after or ":0:0").split(":")
    first = bytes.fromhex(begin), int(number)
    known = await node.known()
    found: list[Counted] = []
    left = limit
    for server in sorted(server for server in known if server >= first[0]):
        counted = Counted(address(known[server]), Tally(), 0)
        key = node.names.server(server)
        generation = await node.database.command(b"HGET", key, b"generation", key=key, writes=False)
        for bucket in await listed(node, server):
            if (server, bucket) < first:
                continue
            cursor = place.encode() if (server, bucket) == first else b"0"
            while left > 0:
                name = node.names.bucket(server, bucket)
                cursor, associated, *pairs = await node.run("tally", [name], cursor, left, generation or b"0")
                for status, count in zip(pairs[::2], pairs[1::2], strict=True):
                    counted.statuses[STATUSES[status].value if status < len(STATUSES) else DAMAGED] += count
                    left -= count
                counted = counted._replace(associated=counted.associated + associated)
                if cursor == b"0":
                    break
            else:
                return [*found, counted], f"{server.hex()}:{bucket}:{cursor.decode()}"
        found.append(counted)
    return found, None
