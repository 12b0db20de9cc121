"""Turns to connect to SMP servers: `Places` and `Standing`s, with the loop's clock and futures around them."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from smp_bridge.address import ServerAddress
from smp_bridge.failure import ConnectError, Happened
from smp_bridge.names import Names
from smp_bridge.network import Network, Route, find_route
from smp_bridge.places import Places, Standing, Ticket, take_one

_SHARE: Final = {True: 32, False: 8}  # of the places for proven servers, or not: one for each prefix, each token
_RESOLVING: Final = 256  # names of proven servers that are looked up at once
_RESOLVING_NEW: Final = 64  # and of others


@dataclass(frozen=True, slots=True)
class TurnsConfig:
    """How many connect at once: of proven servers `places`, of others `new_places`; `quick` of each that are not slow.

    Slow is who takes longer than `quick_time` seconds. `new_time`: seconds that a whole connect to a server that is not
    proven may take; `sessions_at_prefix`: that there may be at one address prefix.
    """

    places: int = 1024
    new_places: int = 64
    quick: int = 4
    quick_time: float = 0.02
    new_time: float = 30.0
    sessions_at_prefix: int = 256


class CrowdedError(ConnectError):
    """There are as many sessions at this prefix as may be."""

    happened = Happened.PREFIX_CROWDED


class Admit(Protocol):
    """Budgets of connects. Seconds until one to a server at these destinations may begin; it is spent."""

    def __call__(self, server: ServerAddress, destinations: Sequence[str], proven: bool, /) -> float:
        """See the class."""
        ...


class _Pool:
    """Places, and who waits for them."""

    def __init__(self, total: int, quick: int, quick_time: float, share: int) -> None:
        self._places = Places(total, quick, share)
        self._quick_time = quick_time
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}

    def __len__(self) -> int:
        return len(self._places)

    @contextlib.asynccontextmanager
    async def turn(self, prefixes: Sequence[str], claims: Sequence[Hashable]) -> AsyncIterator[None]:
        """Waits for it, and has it."""
        loop = asyncio.get_running_loop()
        ticket = self._places.ask(prefixes, claims)
        turn = self._waiting[ticket] = loop.create_future()
        timer: asyncio.TimerHandle | None = None
        self._look()
        try:
            await turn
            timer = loop.call_later(self._quick_time, self._on_slow, ticket)
            yield
        finally:
            if timer is not None:
                timer.cancel()
            self._waiting.pop(ticket, None)
            self._places.leave(ticket)
            self._look()

    def _on_slow(self, ticket: Ticket) -> None:
        self._places.slow(ticket)
        self._look()

    def _look(self) -> None:
        for ticket in self._places.turns():
            turn = self._waiting.pop(ticket)
            if not turn.done():  # else it is cancelled, and leaves in a moment
                turn.set_result(None)


class Turns:
    """Of all servers of an agent. `admit`: see `Admit`; `name_servers`: see `Names`."""

    def __init__(self, config: TurnsConfig, admit: Admit, name_servers: Sequence[str] = ()) -> None:
        self.config = config
        self.admit = admit
        self.names = Names(name_servers)
        places = {True: config.places, False: config.new_places}  # by whether proven
        looking = {True: min(_RESOLVING, config.places), False: min(_RESOLVING_NEW, config.new_places)}
        self.resolving = {proven: _Pool(n, n, 0.0, _SHARE[proven]) for proven, n in looking.items()}
        self.connecting = {
            proven: _Pool(n, config.quick, config.quick_time, _SHARE[proven]) for proven, n in places.items()
        }
        self._sessions: Counter[str] = Counter()  # by prefix

    @property
    def sessions(self) -> int:
        """How many there are."""
        return self._sessions.total()

    def waiting(self, *, proven: bool) -> int:
        """How many have a turn or wait for one."""
        return len(self.resolving[proven]) + len(self.connecting[proven])

    def is_crowded(self, prefixes: Sequence[str]) -> bool:
        """Whether there are as many sessions as may be at one of these."""
        return any(self._sessions[prefix] >= self.config.sessions_at_prefix for prefix in prefixes)

    @contextlib.contextmanager
    def session(self, prefix: str) -> Iterator[None]:
        """While there is one."""
        self._sessions[prefix] += 1
        try:
            yield
        finally:
            take_one(self._sessions, prefix)

    def close(self) -> None:
        """The agent is closed."""
        self.names.close()


class ServerTurn:
    """One connect to one server: a `connecting.Turn`. `prefix`: where it led, once it is connected.

    What a server has proved counts where it leads now: elsewhere it is one that nobody knows.
    """

    def __init__(self, turns: Turns, server: ServerAddress, standing: Standing) -> None:
        self.prefix = ""
        self._turns = turns
        self._server = server
        self._standing = standing
        self._left = turns.config.new_time

    async def route(self, host: str, port: int, network: Network) -> Route:
        """See `Turn`."""
        proven = self._standing.is_proven
        async with self._turns.resolving[proven].turn((), self._standing.claims), self._within(proven):
            return await find_route(host, port, network, self._turns.names)

    @contextlib.asynccontextmanager
    async def connecting(self, route: Route) -> AsyncIterator[None]:
        """See `Turn`. Raises CrowdedError."""
        proven = self._standing.is_proven_at(route.prefixes)
        wait = self._turns.admit(self._server, route.destinations, proven)
        if wait > 0:
            await asyncio.sleep(wait)
        async with self._turns.connecting[proven].turn(route.prefixes, self._standing.claims):
            if self._turns.is_crowded(route.prefixes):
                raise CrowdedError("there are too many sessions at its address prefix")
            async with self._within(proven):
                yield

    @contextlib.asynccontextmanager
    async def _within(self, proven: bool) -> AsyncIterator[None]:
        """The time that one that is not proven has in all. Raises TimeoutError."""
        if proven:
            yield
            return
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(max(0.0, self._left)):
                yield
        finally:
            self._left -= loop.time() - began

    def reached(self, prefix: str) -> None:
        """See `Turn`."""
        self.prefix = prefix
