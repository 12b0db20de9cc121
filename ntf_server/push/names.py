"""Names of push hosts, resolved in the loop by c-ares: a name that nobody answers for holds up nobody else.

libcurl would resolve in a few threads of its own, where dead names queue before living ones, and would not let go of
them at the end.
"""

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from ntf_server.store.records import Record
from smp_bridge.names import TIMEOUT, Names
from smp_bridge.network import is_own_ip, is_public_ip

T = TypeVar("T")

_FRESH: Final = 60.0  # seconds that an answer is used without asking again
_MAX_NAMES: Final = 4096  # kept
_AT_ONCE: Final = 256  # lookups of one kind, the operator's hosts or strangers'; others wait for their turn
_MAX_ADDRESSES: Final = 16  # of one name


class Addresses(Record, frozen=True):
    """Where a name leads: `all` addresses, and those `public` ones among them that are not our own. Empty: nowhere."""

    all: tuple[str, ...] = ()
    public: tuple[str, ...] = ()

    @classmethod
    def of(cls, addresses: Sequence[str], own: Sequence[str] = ()) -> "Addresses":
        """Of IP addresses, as text. `own`: addresses of ours, which this machine itself need not have."""
        few = tuple(dict.fromkeys(addresses))[:_MAX_ADDRESSES]
        return cls(few, tuple(a for a in few if is_public_ip(a) and a not in own and not is_own_ip(a)))


NOWHERE: Final = Addresses()
Then = Callable[[Addresses], None]


class Resolver:
    """Used in one running loop. `servers`, `timeout`: see `smp_bridge.names.Names`; `own`: our own host, which may
    be reached by an address that this machine does not have.
    """

    def __init__(self, servers: Sequence[str] = (), *, timeout: float = TIMEOUT, own: str = "") -> None:
        self._loop = asyncio.get_running_loop()
        self._names = Names(servers, timeout=timeout)
        self._own = own.lower().rstrip(".") or None
        self._known: OrderedDict[str, tuple[Addresses, float]] = OrderedDict()  # with when to ask again, monotonic
        self._waiting: dict[str, list[Then]] = {}
        self._turns = {kind: asyncio.Semaphore(_AT_ONCE) for kind in (False, True)}
        self._tasks: set[asyncio.Task[None]] = set()

    def known(self, host: str) -> Addresses | None:
        """What is known of a host, if it need not be asked for first: old answers serve while new ones are got."""
        found = self._known.get(host)
        if found is None:
            try:
                ipaddress.ip_address(host)
            except ValueError:
                return None
            own = self._known.get(self._own) if self._own else (NOWHERE, 0.0)
            if own is None:
                return None  # it has to be known first
            found = self._keep(host, Addresses.of([host], own[0].all), time.monotonic() + _FRESH)
        elif found[1] < time.monotonic():
            self._known[host] = found[0], time.monotonic() + _FRESH  # who asks meanwhile need not ask again
            self._start(host, strangers=False)
        return found[0]

    def resolve(self, host: str, then: Then, *, strangers: bool) -> None:
        """Ask for a host; `then` is called in the loop, once. `strangers`: somebody else chose it."""
        waiting = self._waiting.get(host)
        if waiting is not None:
            waiting.append(then)
            return
        self._waiting[host] = [then]
        self._start(host, strangers=strangers)

    async def close(self) -> None:
        """Ask no more; nothing that waits is called."""
        self._waiting.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._names.close()

    def _start(self, host: str, *, strangers: bool) -> None:
        task = self._loop.create_task(self._ask(host, self._turns[strangers]), name="push name")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, host: str, turns: asyncio.Semaphore) -> None:
        own = await self._own_addresses() if host != self._own else ()
        try:
            async with turns:
                found = await self._names.look_up(host)
            addresses = Addresses.of(found, found if host == self._own else own)
        except (OSError, ValueError, TimeoutError):
            addresses = NOWHERE
        if not addresses.all and host in self._known:  # better an old answer than none (RFC 8767)
            addresses = self._known[host][0]
        elif addresses.all or host == self._own:
            self._keep(host, addresses, time.monotonic() + _FRESH)
        for then in self._waiting.pop(host, ()):
            then(addresses)

    async def _own_addresses(self) -> tuple[str, ...]:
        """Where our own host leads. Waited for once: later old answers serve, and one that there is none, too."""
        if not self._own:
            return ()
        known = self.known(self._own)
        if known is None:
            answer: asyncio.Future[Addresses] = self._loop.create_future()
            self.resolve(self._own, partial(_give, answer), strangers=False)
            known = await answer
        return known.all

    def _keep(self, host: str, addresses: Addresses, until: float) -> tuple[Addresses, float]:
        self._known[host] = found = addresses, until
        self._known.move_to_end(host)
        if len(self._known) > _MAX_NAMES:
            self._known.popitem(last=False)
        return found


def _give(answer: asyncio.Future[T], found: T) -> None:
    if not answer.done():  # nobody waits any more
        answer.set_result(found)
