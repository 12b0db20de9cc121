"""Who is primary, of which slots: told by the URL, by Sentinels, or by the cluster's nodes.

Ours and not redis-py's Sentinel class, which brings pools and clients of its own: it is one question, and what they
answer has to be checked by asking the server itself, as some Sentinels learn of a failover later than others.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import ResponseError

from ntf_server.store.contract import StoreConflictError, StoreError, StoreUnavailableError
from ntf_server.store.redis.connection import TROUBLE, Dialer
from ntf_server.store.redis.remedy import Again, remedy
from ntf_server.store.redis.url import Endpoint, Kind, RedisUrl

T = TypeVar("T")

SLOTS: Final = REDIS_CLUSTER_HASH_SLOTS

# The primary of each slot, None: nobody has it. One without slots of its own has a single place.
Table = list[Endpoint | None]


class Topology:
    """`look` as often as who is primary may have changed. `dialer` is for the servers with the data."""

    def __init__(self, url: RedisUrl, dialer: Dialer) -> None:
        self._url = url
        self._dialer = dialer
        self._sentinels = Dialer(url.sentinel_login, dialer.tls, 0, dialer.timeout, sentinels=True)
        self._turn = 0  # of those that can be asked

    def slot(self, key: bytes) -> int:
        """A key's place in the table."""
        return key_slot(key) if self._url.kind is Kind.CLUSTER else 0

    def first(self) -> Table | None:
        """What is known without a look; None: nothing."""
        return [self._url.hosts[0]] if self._url.kind is Kind.ALONE else None

    async def look(self, known: Collection[Endpoint] = (), *, trusted: bool = False) -> Table:
        """Ask those of the URL, and in a cluster the `known` primaries too, until one answers; another one first each
        time, as one may be cut off from the rest. What Sentinels tell is checked, unless it is known, and `trusted`.
        Raises StoreError.
        """
        match self._url.kind:
            case Kind.ALONE:
                return [self._url.hosts[0]]
            case Kind.SENTINEL:
                question = partial(self._primary_by, believed=known if trusted else ())
                return [await self._ask(self._url.hosts, question)]
            case Kind.CLUSTER:
                return await self._ask(list(dict.fromkeys([*known, *self._url.hosts])), self._slots_by)
        raise AssertionError

    async def _ask(self, servers: Sequence[Endpoint], question: Callable[[Endpoint], Awaitable[T]]) -> T:
        self._turn += 1
        reasons: list[str] = []
        final: StoreError | None = None
        for i in range(len(servers)):
            server = servers[(self._turn + i) % len(servers)]
            try:
                return await question(server)
            except (*TROUBLE, StoreError) as e:
                told = remedy(e, server, "who is primary")
                if isinstance(told, StoreError) and not isinstance(told, StoreUnavailableError):
                    final = told
                reasons.append(told.reason if isinstance(told, Again) else str(told))
        raise final or StoreUnavailableError("; ".join(dict.fromkeys(reasons)))

    async def _primary_by(self, sentinel: Endpoint, believed: Collection[Endpoint]) -> Endpoint:
        async with await self._sentinels.dial(sentinel) as connection:
            words = (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", self._url.service)
            told = await connection.command(*words, timeout=self._dialer.timeout)
        if told is None:
            raise StoreUnavailableError(f"{sentinel} knows no service {self._url.service!r}")
        endpoint = Endpoint(told[0].decode(), int(told[1]))
        if endpoint not in believed:
            await self._check(endpoint)
        return endpoint

    async def _check(self, endpoint: Endpoint) -> None:
        """That it is a primary."""
        try:
            await (await self._dialer.dial(endpoint)).close()  # which asks for its role
        except TROUBLE as e:
            told = remedy(e, endpoint, "ROLE")
            if isinstance(told, StoreError):
                raise told from None
            raise StoreUnavailableError(told.reason if isinstance(told, Again) else f"{endpoint}: {e}") from None

    async def _slots_by(self, node: Endpoint) -> Table:
        async with await self._dialer.dial(node) as connection:
            try:
                told = await connection.command(b"CLUSTER", b"SLOTS", timeout=self._dialer.timeout)
            except ResponseError as e:
                if "cluster support disabled" in str(e):
                    raise StoreConflictError(f"{node} is no cluster: the store's url has to be redis://") from None
                raise
        if not told:
            raise StoreUnavailableError(f"{node} knows of no slots")
        return slot_table(told, node)


def slot_table(told: Sequence[Any], by: Endpoint) -> Table:
    """An answer to CLUSTER SLOTS: `[first, last, [host, port, …] of the primary, …]` of each range."""
    table: Table = [None] * SLOTS
    for first, last, (host, port, *_), *_ in told:
        named = host.decode() if host else ""
        primary = Endpoint(named if named not in ("", "?") else by.host, port)
        table[first : last + 1] = [primary] * (last - first + 1)
    return table
