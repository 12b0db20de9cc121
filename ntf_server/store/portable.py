"""What moves from one store to another: records that are no engine's, opened, and what tells that all of them arrived.

Times are Unix seconds by this machine's clock; 0: never. An engine reads its records into these and writes them from
these, each value sealed by the store that has it: what stands here is never written down. Text and `repr` show none.
"""

import hashlib
import os
from collections import Counter as Tally
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import msgspec

from ntf_server.store.contract import StoreConflictError
from ntf_server.store.records import Record
from ntf_server.store.statistics import Counts
from smp_bridge.address import parse_host
from smp_bridge.encoding import ParseError, Reader
from smp_bridge.ntf import TokenStatus

T = TypeVar("T")

TOLERANCE: Final = 2.0  # seconds by which clocks may differ without being two
_LARGE_FENCE: Final = 1 << 31  # those that are times in microseconds are above; those that are counted below
_MOST: Final = 20_000  # subscriptions in memory at once, or those of one registration
_FENCE_SHIFT: Final = 22  # what is left of a time orders sessions that began more than four seconds apart
_SUM: Final = 1 << 256


class MovedServer(Record, frozen=True):
    """An SMP server. `address`: as its store spells it (`ServerAddress.encode`).

    `counted`, `counted_hash`: of the queues that our service has there, those that were released included; `proven`,
    `tried_since`, `unused_since`: as the engines keep them; `chain`, `key`: the service's, or empty.
    """

    address: bytes
    service_id: bytes | None
    counted: int
    counted_hash: bytes
    released: int
    released_hash: bytes
    prefixes: str
    proven: int
    tried_since: int
    unused_since: int
    chain: bytes
    key: bytes


class MovedNotification(Record, frozen=True):
    """The newest of a queue. `fence` and `number` order those of a token; `sent`: 0 no, 1 yes, 2 its time is over."""

    fence: int
    number: int
    received_at: int
    nonce: bytes
    meta: bytes
    sent: int


class MovedQueue(Record, frozen=True):
    """A subscription. `server`: the address in its `MovedServer`; `spelling`: as its SNEW spelled it, if otherwise.

    `place`: grows in the order of the server's queues.
    """

    server: bytes
    notifier_id: bytes
    subscription_id: bytes
    key: bytes
    spelling: bytes
    status: str
    error: str
    associated: bool
    created_at: int
    place: int
    notification: MovedNotification | None


class MovedToken(Record, frozen=True):
    """A registration. `server_private`: in the place of `client_dh`, of those that keep no client key.

    `due_ms`: when it is due, in milliseconds, None: it is not; `attempts` to `delivered_at`: of its last push.
    """

    token_id: bytes
    provider: str
    device_token: bytes
    verify_key: bytes
    client_dh: bytes
    server_private: bytes
    server_dh: bytes
    secret: bytes
    code: bytes
    app: str
    vapid_key: bytes
    status: str
    reason: str
    registration: int
    registered_at: int
    active_at: int
    proven: bool
    period: int
    period_at: int
    verification_due: int
    check_due: int
    due_ms: int | None
    attempts: int
    push_id: bytes
    pushed_at: int
    ended: str
    ended_reason: str
    delivered_at: int


class Moved(Record, frozen=True):
    """A registration with all its subscriptions."""

    token: MovedToken
    queues: tuple[MovedQueue, ...]


class Slice(Record, frozen=True):
    """Some registrations; `cursor`: where the next ones begin, None: there are none.

    `left_out`: by kind, what cannot be read, and registrations of which a later one has the device.
    """

    moved: list[Moved]
    cursor: bytes | None
    left_out: Tally[str]


class Servers(Record, frozen=True):
    """Some SMP servers. `left_out`: by kind, what cannot be read."""

    moved: list[MovedServer]
    left_out: Tally[str]


class Mark(msgspec.Struct, frozen=True):
    """In a store that is being filled. `source`: which store that comes from; `aheads`: seconds by which the source's
    times, and its own, are ahead of this machine's clock; `cursor`: how far it is, None: all is there.
    """

    source: str
    aheads: tuple[int, int]
    cursor: bytes | None = b""


class Source(Protocol):
    """What is read as a whole, while nobody uses it.

    Methods raise StoreError, StoreCorruptError; what stands for a time is less `ahead` when it is read. Of a source
    that is no store of ours `ahead` is when this began, which stands for times that it does not know.
    """

    ahead: int

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def identity(self) -> str:
        """Which one it is: nothing of its key can be had from that."""
        ...

    async def tokens(self) -> int:
        """How many registrations it has."""
        ...

    def servers(self) -> AsyncIterator[Servers]:
        """All SMP servers, some at once."""
        ...

    async def read(self, after: bytes, limit: int) -> Slice:
        """`limit` registrations behind a cursor (empty: the first ones); less if they have very many subscriptions."""
        ...

    async def statistics(self) -> Mapping[str, Counts]:
        """Rows of what was counted on which day."""
        ...

    async def check_idle(self) -> None:
        """Raises StoreUnavailableError if a relay uses it."""
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...


class Portable(Source, Protocol):
    """A store that nobody uses, read and written as a whole. What stands for a time is more `ahead` when it is
    written.
    """

    async def is_empty(self) -> bool:
        """Whether it has neither registrations nor servers."""
        ...

    async def mark(self) -> Mark | None:
        """The mark that it has."""
        ...

    async def begin(self, mark: Mark) -> None:
        """Mark it, so that no relay starts on it. Raises StoreUnavailableError, StoreConflictError (not empty, or
        another process is filling it).
        """
        ...

    async def take_over(self) -> None:
        """Go on in the place of the process that marked it. Raises StoreConflictError if that lives."""
        ...

    async def write_servers(self, servers: Sequence[MovedServer]) -> None:
        """Servers; those that are there stay."""
        ...

    async def write(self, moved: Sequence[Moved], mark: Mark) -> None:
        """Registrations, and then how far that is. May be done twice."""
        ...

    async def write_statistics(self, rows: Mapping[str, Counts]) -> None:
        """The same, in the place of what was there."""
        ...

    async def end(self, newest: int) -> None:
        """Remove the mark. `newest`: when the last command of a device came."""
        ...


def being_filled(name: str) -> StoreConflictError:
    """What a relay is told that starts on a store with a mark."""
    return StoreConflictError(
        f"{name}: this store is being filled by `ntf-server migrate` or `ntf-server import`, which has not ended: run"
        " that again, from the same source, until it says that all is there"
    )


def read_mark(name: str, packed: bytes) -> Mark:
    """Raises StoreConflictError."""
    try:
        return msgspec.msgpack.decode(packed, type=Mark)
    except msgspec.DecodeError as e:
        raise StoreConflictError(f"{name}: another `ntf-server` began to fill it: end it with that one") from e


def origin_of(device_token: bytes) -> str:
    """Of the push service in a device token of Web Push (wire.md, section 8), as its provider writes it; empty if that
    cannot be read.
    """
    try:
        r = Reader(device_token)
        host = parse_host(r.short().decode("ascii").lower())
        port = r.short().decode("ascii") or "443"
    except (ParseError, UnicodeDecodeError):
        return ""
    if ":" in host:
        host = f"[{host}]"
    return f"https://{host}" + ("" if port.lstrip("0") == "443" else f":{port.lstrip('0')}")


def fitting(sizes: Sequence[int]) -> int:
    """How many registrations of a slice are read with their subscriptions, of which they have so many: one at least."""
    total = 0
    for number, size in enumerate(sizes):
        total += size
        if number and total > _MOST:
            return number
    return len(sizes)


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Parts of them, of this size at most."""
    return (items[at : at + size] for at in range(0, len(items), size))


def common_fence(fence: int) -> int:
    """A fence as every engine can keep it: one that is a time in microseconds is shortened, once."""
    return fence >> _FENCE_SHIFT if fence >= _LARGE_FENCE else fence


def due_at(known: int | None, status: str, unsent: int | None, verification_due: int, check_due: int) -> int | None:
    """When a token is due, in milliseconds. What the memory of a relay had is due since it came.

    `known`: when its store says; `unsent`: when the first notification that did not go out arrived.
    """
    if known is not None:
        return known
    active = status == TokenStatus.ACTIVE
    if active and unsent is not None:
        return unsent * 1000
    if verification_due:
        return verification_due * 1000
    return check_due * 1000 if active and check_due else None


class Digest:
    """Counts and sums of what was read, in any order: of two stores the same, if they have the same."""

    def __init__(self, key: bytes) -> None:
        """`key`: that of this comparison alone."""
        self._key = key
        self.counts: Tally[str] = Tally()
        self.left_out: Tally[str] = Tally()
        self.newest = 0
        self._sums: Tally[str] = Tally()

    @classmethod
    def pair(cls) -> "tuple[Digest, Digest]":
        """Two that can be compared."""
        key = os.urandom(32)
        return cls(key), cls(key)

    def _add(self, kind: str, *facts: Any) -> None:
        digest = hashlib.blake2b(msgspec.msgpack.encode(facts), key=self._key, digest_size=32).digest()
        self.counts[kind] += 1
        self._sums[kind] = (self._sums[kind] + int.from_bytes(digest)) % _SUM

    def add_servers(self, servers: Servers) -> None:
        """SMP servers."""
        for server in servers.moved:
            self._add("servers", *values(server))
        self.left_out.update(servers.left_out)

    def add(self, slice_: Slice) -> None:
        """Registrations with what is theirs."""
        for one in slice_.moved:
            token = one.token
            self._add("registrations", *values(token))
            self.newest = max(self.newest, token.active_at)
            for queue in one.queues:
                *facts, _, notification = values(queue)
                self._add("subscriptions", token.token_id, *facts)
                if notification is not None:
                    self._add("notifications", queue.subscription_id, *values(notification))
        self.left_out.update(slice_.left_out)

    def differences(self, other: "Digest") -> list[str]:
        """Kinds that are not the same."""
        kinds = [*self.counts, *(kind for kind in other.counts if kind not in self.counts)]
        return [k for k in kinds if (self.counts[k], self._sums[k]) != (other.counts[k], other._sums[k])]


def values(record: Record) -> tuple[Any, ...]:
    """Of all its fields."""
    return tuple(getattr(record, name) for name in record.__struct_fields__)
