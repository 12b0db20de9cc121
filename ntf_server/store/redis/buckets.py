"""Buckets of an SMP server's queues: each has a slot of its own, so a server with many is no one primary's.

The server lists those that may have queues, before a queue comes into one. A session shows its fence in each: it is
known there from its beginning on, and an older one is refused.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.records import Session
from ntf_server.store.redis.asking import Word
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.node import Node
from ntf_server.store.redis.rows import HEAD, NUMBERS, Cursor, Queue
from smp_bridge.ntf import SubscriptionStatus

_TRIES: Final = 20  # of a session to have the highest fence
_TAKEN_BACK: Final = 500  # ENDs at once
_FIRST: Final = (0, -1)
ALL: Final = "+inf"  # generations below it are all
ANYBODY: Final[Sequence[Word]] = ("", "")  # instead of `who`

Records = dict[bytes, bytes | None]  # of queues, by notifier id; None: there is no such queue


class Item(NamedTuple):
    """A queue that should be active, in the order of cursors."""

    bucket: int
    generation: int
    notifier_id: bytes
    record: bytes

    @property
    def cursor(self) -> Cursor:
        """Where it is."""
        return Cursor(self.bucket, self.generation, int(HEAD.unpack_from(self.record)[3]))


def bucket_of(node: Node, ref: Queue) -> bytes:
    """Key of the bucket that a queue is in."""
    return node.names.bucket(ref.server, node.names.bucket_number(ref.notifier_id))


def by_bucket(node: Node, server: bytes, notifier_ids: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    """Those of each, by its key."""
    out: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for notifier_id in notifier_ids:
        out[bucket_of(node, Queue(server, notifier_id))].append(notifier_id)
    return out


def counted(ids: Mapping[bytes, Sequence[Word]]) -> dict[bytes, Sequence[Word]]:
    """As scripts take them: how many, then these."""
    return {key: [len(some), *some] for key, some in ids.items()}


def who(node: Node, session: Session) -> list[Word]:
    """Arguments by which scripts know in a bucket that the session counts."""
    return [node.id, session.fence]


# --- which there are


async def listed(node: Node, server: bytes) -> list[int]:
    """Buckets of a server that may have queues."""
    key = node.names.server(server)
    return numbers(await node.database.command(b"ZRANGE", key + b":b", 0, -1, key=key, writes=False))


def numbers(listed: Iterable[bytes]) -> list[int]:
    """Buckets, as scripts give them."""
    return sorted(map(int, listed))


def empty_parts(node: Node, server: bytes, buckets: Iterable[int]) -> dict[bytes, Sequence[Word]]:
    """For a script that takes nothing of each but its key."""
    return {node.names.bucket(server, n): () for n in buckets}


async def are_wanted(node: Node, servers: Iterable[bytes]) -> dict[bytes, tuple[bool, int]]:
    """Whether anything of each server should be active, how many subscriptions it has; of those that can be had now."""
    lists = await node.run_those({server: node.call("listed", [node.names.server(server)]) for server in servers})
    parts = {
        (server, some[0]): [node.names.bucket(server, n) for n in some]
        for server, its in lists.items()
        for some in at_once(node, numbers(its))
    }
    answers = await node.run_those({part: node.call("is_wanted", keys) for part, keys in parts.items()})
    found = dict.fromkeys(lists, (False, 0))
    for (server, _), (wanted, count) in answers.items():
        before, so_far = found[server]
        found[server] = before or bool(wanted), so_far + count
    away = {server for server, first in parts.keys() - answers.keys() if not found[server][0]}
    return {server: found[server] for server in found if server not in away}


async def is_wanted(node: Node, server: bytes) -> tuple[bool, int]:
    """The same of one. Raises StoreUnavailableError."""
    found = (await are_wanted(node, [server])).get(server)
    if found is None:
        raise StoreUnavailableError("an SMP server's queues cannot be had now")
    return found


def at_once(node: Node, buckets: Sequence[int]) -> list[Sequence[int]]:
    """Those that one call takes."""
    if node.database.spans:
        return [buckets] if buckets else []
    return [[n] for n in buckets]


# --- sessions


async def overtake(node: Node, server: bytes, fence: int, buckets: Iterable[int]) -> int:
    """Have no older session believed in them; the highest fence that is known there."""
    answers = await node.run_on("overtake", [node.id, fence], empty_parts(node, server, buckets))
    return max(map(int, answers), default=0)


async def acquire(node: Node, server: bytes, lease_ms: int, address: bytes) -> int | None:
    """A fence above all that the server and its buckets know; None: another node speaks for it.

    A bucket may know a later one: another session began meanwhile, or the server's primary failed over and lost it.
    """
    least = 0
    for _ in range(_TRIES):
        args = (node.ahead, node.id, lease_ms, address, least)
        found = await node.run("acquire", [node.names.server(server)], *args)
        if found is None:
            return None
        fence, *some = found
        highest = await overtake(node, server, int(fence), numbers(some))
        if highest <= int(fence):
            return int(fence)
        least = highest + 1
    raise StoreUnavailableError("others begin sessions with a server all the time")


# --- queues


async def take_back(node: Node, server: bytes) -> list[Queue]:
    """Queues that had an END within the last hour are wanted anew: those that are not yet subscribed."""
    left, before = await listed(node, server), 0
    found: list[Queue] = []
    while left:
        head = (node.ahead, NUMBERS[SubscriptionStatus.END], before, _TAKEN_BACK)
        answers = await node.run_on("take_back", head, empty_parts(node, server, left))
        lists = [part for answer in answers for part in answer]
        found += [Queue(server, notifier_id) for _, *ids in lists for notifier_id in ids]
        left = [n for n, [looked_at, *_] in zip(left, lists, strict=True) if looked_at == _TAKEN_BACK]
        before += _TAKEN_BACK
    return found


async def owners(node: Node, session: Session, notifier_ids: Sequence[bytes]) -> tuple[bytes, Records]:
    """The server's address, and the queues' records, for who speaks for it or did last: of those queues that can be had
    now. Raises FencedError.
    """
    ids = by_bucket(node, server_id(session.server), notifier_ids)
    head = who(node, session)
    if node.database.spans:
        answers = await node.run_on("owners", head, counted(ids))
        lists = dict(zip(ids, (part for answer in answers for part in answer), strict=True))
    else:
        calls = {key: node.call("owners", [key], *head, *part) for key, part in counted(ids).items()}
        lists = {key: part for key, [part] in (await node.run_those(calls)).items()}
    address, records = b"", Records()
    for key, (kept, *found) in lists.items():
        address = address or kept or b""
        records.update(zip(ids[key], found, strict=True))
    return address, records


async def load(node: Node, session: Session, notifier_ids: Sequence[bytes]) -> list[bytes | None]:
    """The queues' records. Raises FencedError."""
    ids = by_bucket(node, server_id(session.server), notifier_ids)
    answers = await node.run_on("load", who(node, session), counted(ids))
    asked = [i for some in ids.values() for i in some]
    found = dict(zip(asked, (record for answer in answers for record in answer), strict=True))
    return [found[i] for i in notifier_ids]


async def walk(
    node: Node,
    server: bytes,
    head: Sequence[Word],
    after: Cursor | None,
    limit: int,
    *,
    first: tuple[int, int] = _FIRST,
    below: Word = ALL,
) -> list[Item]:
    """Queues that should be active, of generations below one. `head`: `who` or ANYBODY; `first`: where each begins.

    One primary goes on from bucket to bucket itself. In a cluster those that probably are enough are asked at once.
    """
    left = [n for n in await listed(node, server) if after is None or n >= after.bucket]
    found: list[Item] = []
    size = len(left) if node.database.spans else 1
    while left and len(found) < limit:
        some, left = left[:size], left[size:]
        parts: dict[bytes, Sequence[Word]] = {
            node.names.bucket(server, n): after[1:] if after and n == after.bucket else first for n in some
        }
        answers = await node.run_on("page", [*head, below, limit - len(found)], parts)
        lists: list[Any] = [items for answer in answers for items in answer]
        for n, items in zip(some, lists, strict=True):
            found += (Item(n, *item) for item in items)
        whole = after is None or some[-1] > after.bucket  # so this says how many the others may have
        size = 1 + (limit - len(found)) // (len(lists[-1]) + 1) if whole else 1
    return found[:limit]


def behind(items: Sequence[Item], limit: int) -> Cursor | None:
    """Where the next page begins; None: that was the last."""
    return items[-1].cursor if len(items) >= limit else None
