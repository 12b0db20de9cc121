"""A Redis for many callers: what is asked for goes out together, to who is primary, and again if that fails.

The engine's only way to Redis. All who ask in one turn of the loop share a pipeline to each primary (`primary`); what
an error means stands in `remedy`, who is primary in `topology`. What passes (a failover, a slot that moves, a server
that loads) is tried again for `Bounds.limit` seconds, by us: redis-py's clients repeat what may have been done without
asking, and its cluster client loses commands while a slot moves.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self
from weakref import WeakSet

from ntf_server.observe.events import Event, EventLog
from ntf_server.store.contract import StoreConflictError, StoreError, StoreUnavailableError
from ntf_server.store.redis.call import Call, Pending, Word, answers, get_room, script_words, without_errors
from ntf_server.store.redis.connection import Connection, Dialer
from ntf_server.store.redis.durability import Durability
from ntf_server.store.redis.facts import CONFIG, Facts, read_facts, refusals
from ntf_server.store.redis.primary import Primary
from ntf_server.store.redis.remedy import Again, Elsewhere, InFull, remedy, unavailable
from ntf_server.store.redis.script import Script
from ntf_server.store.redis.streams import StreamReader
from ntf_server.store.redis.tls import Tls
from ntf_server.store.redis.topology import SLOTS, Table, Topology
from ntf_server.store.redis.url import Endpoint, Kind, RedisUrl

log = logging.getLogger(__name__)
events = EventLog(__name__)

CLOSE: Final = 1.0  # seconds that servers in trouble may hold up a stop
PROMPT: Final = 0.5  # seconds without a word, after which a primary of a cluster counts as away
_GLANCE: Final = 0.1  # seconds between two looks whether one is
_PAUSES: Final = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)  # seconds before it is tried again; then the last one, for ever
_LOOK_PAUSE: Final = 0.05  # seconds between two looks at least
_LOOK_EVERY: Final = 0.5  # seconds: Sentinels may have chosen another one, while the old one answers us still
_UNKNOWN: Final = 5  # times that a server may say that it does not have a script which it was sent
_NO_DURABILITY: Final = Durability()


@dataclass(frozen=True)
class Bounds:
    """Seconds: `limit`, until a call is unavailable, with all its repetitions; `connect`; `answer`, without a word of
    the server. Counts for each primary: `pipelines` under way, `calls` under way or waiting; who comes then waits for
    room, and those of other primaries do not.
    """

    limit: float = 5.0
    connect: float = 1.0
    answer: float = 2.0
    pipelines: int = 4
    calls: int = 10_000


_BOUNDS: Final = Bounds()


class _Resting(NamedTuple):
    """Calls that go on together when the timer ends."""

    calls: list[Pending]
    timer: asyncio.TimerHandle


class Database:
    """`run` calls from any asyncio task of one loop; `close` at the end. Made by `open`.

    `prefix` is what all keys begin with, by the URL. `spans`: one primary has all slots, so keys of a call may be of
    several.
    """

    def __init__(
        self,
        url: RedisUrl,
        *,
        bounds: Bounds = _BOUNDS,
        durability: Durability = _NO_DURABILITY,
        on_error: Callable[[Exception], None] = lambda _: None,
        tls: Tls | None = None,
    ) -> None:
        self.url: Final = url
        self.prefix: Final = url.prefix
        self.spans: Final = url.kind is not Kind.CLUSTER
        self._bounds = bounds
        self._durability = durability
        self._on_error = on_error
        self.on_lost: Callable[[], None] = lambda: None  # what was written and answered last may not be there any more
        self.on_commit: Callable[[float], None] = lambda _: None  # what was written is durable, after so many seconds
        self.told: list[Facts] = []  # by the primaries, when it was opened
        self._dialer = Dialer(url.login, tls or Tls.of(url), url.database, bounds.connect, check_role=self.spans)
        self._topology = Topology(url, self._dialer)
        self._table: Table = [None] * (1 if self.spans else SLOTS)
        self._primaries: dict[Endpoint, Primary] = {}
        self._histories: dict[Endpoint, str] = {}
        self._retired: set[Primary] = set()
        self._readers: WeakSet[StreamReader] = WeakSet()
        self._loop = asyncio.get_running_loop()
        self._rooms: dict[Endpoint | None, asyncio.Semaphore] = {}
        self._asked: dict[Pending, None] = {}  # in the order of their deadlines
        self._expiry: asyncio.TimerHandle | None = None
        self._resting: dict[float, _Resting] = {}  # by how long
        self._wanted = asyncio.Event()  # a look
        self._trouble: StoreError | None = None  # of the last look
        self._looker: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(
        cls,
        url: RedisUrl,
        *,
        bounds: Bounds = _BOUNDS,
        durability: Durability = _NO_DURABILITY,
        on_error: Callable[[Exception], None] = lambda _: None,
        tls: Tls | None = None,
    ) -> Self:
        """Find out who is primary, ask each what it is, and refuse what cannot serve the relay (`facts.refusals`).

        `on_error` hears, in the loop, of every call that failed; `tls` None: that of the URL. Raises StoreConflictError
        (it is refused, with one line), StoreUnavailableError (no primary answered within `bounds.limit` seconds),
        StoreError (a right, a password).
        """
        database = cls(url, bounds=bounds, durability=durability, on_error=on_error, tls=tls)
        try:
            await database._begin()
            database.told = await database.facts()
            if refused := refusals(database.told, url.kind, durability):
                raise StoreConflictError("; ".join(refused))
        except BaseException:
            await database.close()
            raise
        return database

    # --- asking

    async def run(self, call: Call) -> Any:
        """What the script gives: int, bytes, a list of such, None.

        Nothing is said of the order of calls that are asked for together. It may be done more than once (see `Call`);
        when it raised, or was cancelled, it may or may not have been done. Raises StoreUnavailableError,
        StoreFullError (maxmemory), FencedError and StoreConflictError (also the script's own `FENCED …` and
        `CONFLICT …`), StoreError (an operator has to mend something).
        """
        return await (await self._ask_for(call, self._deadline())).future

    async def run_all(self, calls: Sequence[Call]) -> list[Any]:
        """Each as `run` does it, all at once; answers in the order of `calls`. When all have ended raises the first
        error; the others may have been done nevertheless.
        """
        return without_errors(await self.run_each(calls))

    async def run_each(self, calls: Sequence[Call]) -> list[Any]:
        """As `run_all`, but errors (StoreError) stand in the places of answers."""
        deadline = self._deadline()
        return await answers(self._ask_for(call, deadline) for call in calls)

    async def run_prompt(self, calls: Sequence[Call]) -> list[Any]:
        """As `run_each`, but who has other slots is not held up by a primary of a cluster that is away: after PROMPT
        seconds in which it said nothing it is given up, with StoreUnavailableError. Its calls may be done nevertheless.
        """
        if self.spans:
            return await self.run_each(calls)
        deadline, began = self._deadline(), self._loop.time()
        asked: list[Pending | StoreError] = []

        def look() -> None:
            timers.append(self._loop.call_later(_GLANCE, look))
            for pending in asked:
                if isinstance(pending, Pending) and self._is_away(pending, began):
                    self._give_up(pending, PROMPT)

        timers = [self._loop.call_later(_GLANCE, look)]
        try:
            return await answers((self._ask_for(call, deadline) for call in calls), asked)
        finally:
            timers[-1].cancel()

    def _is_away(self, pending: Pending, since: float) -> bool:
        """Who has its slot has not answered it, nor anything else since then, or since it was given up."""
        primary = self._primary_at(pending.target or self._table[pending.slot])
        if self._loop.time() - since < PROMPT:
            return primary is not None and primary.is_given_up
        if primary is not None and primary.is_silent(since, PROMPT):
            primary.give_up()
        return primary is None or primary.is_given_up or pending.tries > pending.unknown

    async def command(self, *words: Word, key: bytes, writes: bool = True) -> Any:
        """A plain command, `words` with its arguments, at the primary of `key`; as `run`. One that is not idempotent
        may be done twice.
        """
        pending = await self._ask(words, None, writes, self._deadline(), slot=self._topology.slot(key))
        return await pending.future

    async def command_everywhere(
        self, *words: Word, at: Iterable[Endpoint] | None = None, writes: bool = False
    ) -> dict[Endpoint, Any]:
        """A plain command at these primaries, or at each that has slots, and the answers of those that are there; as
        `run_all` if none is.
        """
        places = [*(at or dict.fromkeys(endpoint for endpoint in self._table if endpoint is not None))]
        deadline = self._deadline()
        told = await answers(self._ask(words, None, writes, deadline, target=at) for at in places)
        found = {at: word for at, word in zip(places, told, strict=True) if not isinstance(word, StoreUnavailableError)}
        without_errors([*found.values()] or told)
        return found

    def stream_reader(self) -> StreamReader:
        """Reads streams, of one slot in a cluster, over a connection of its own; closed with this, if not before."""
        bounds = self._bounds
        reader = StreamReader(self, limit=bounds.limit, patience=bounds.answer, clock=self._loop.time)
        self._readers.add(reader)
        return reader

    async def facts(self) -> list[Facts]:
        """What each primary that is there says of itself now. Raises StoreError."""
        told = await self.command_everywhere(b"INFO")
        try:
            settings = await self.command_everywhere(b"CONFIG", b"GET", *CONFIG, at=told)
        except StoreUnavailableError:
            raise
        except StoreError:  # denied, as hosters do
            settings = {}
        return [read_facts(at, info, settings.get(at)) for at, info in told.items()]

    async def close(self) -> None:
        """Finish what was asked, within CLOSE seconds if servers are in trouble, and close all connections."""
        if self._closed:
            return
        self._closed = True
        if self._asked:
            await asyncio.wait([pending.future for pending in self._asked], timeout=CLOSE)
        if self._looker is not None:
            self._looker.cancel()
            await asyncio.gather(self._looker, return_exceptions=True)
        for primary in [*self._primaries.values(), *self._retired]:
            await primary.close()
        for reader in list(self._readers):
            await reader.close()
        for timer in (self._expiry, *(resting.timer for resting in self._resting.values())):
            if timer is not None:
                timer.cancel()
        for pending in list(self._asked):
            self._end(pending, error=StoreUnavailableError("the store was closed before it had an answer"))

    def _deadline(self) -> float:
        return self._loop.time() + self._bounds.limit

    async def _ask_for(self, call: Call, deadline: float) -> Pending:
        slot = self._topology.slot(call.keys[0]) if call.keys else 0
        return await self._ask(script_words(call), call.script, call.script.writes, deadline, slot=slot)

    async def _ask(
        self,
        words: tuple[Word, ...],
        script: Script | None,
        writes: bool,
        deadline: float,
        *,
        slot: int = 0,
        target: Endpoint | None = None,
    ) -> Pending:
        """It is on its way when this returns; nothing is waited for but room."""
        future = self._loop.create_future()
        pending = Pending(words, script=script, writes=writes, slot=slot, future=future, deadline=deadline)
        pending.target = target
        room = self._room_at(target or self._table[slot])
        if not room.locked():
            await room.acquire()  # at once
        elif not await get_room(room, deadline):
            raise self._told(unavailable(f"{self._bounds.calls} calls wait for {self.url}", self._bounds.limit))
        if self._closed:
            room.release()
            raise _closed()
        pending.room = room
        self._asked[pending] = None
        if self._expiry is None:
            self._expiry = self._loop.call_at(pending.deadline, self._expire)
        self._route(pending)
        return pending

    def _room_at(self, endpoint: Endpoint | None) -> asyncio.Semaphore:
        room = self._rooms.get(endpoint)
        if room is None:
            room = self._rooms[endpoint] = asyncio.Semaphore(self._bounds.calls)
        return room

    # --- the way to a primary, and back

    def _route(self, pending: Pending) -> None:
        if pending.future.done():  # who asked is gone
            self._end(pending)
            return
        endpoint = pending.target or self._table[pending.slot]
        if endpoint is None:
            pending.tries += 1
            self._rest(pending, Again(f"no server of {self.url} has the slot {pending.slot}", look=True))
            return
        primary = self._primaries.get(endpoint)
        if primary is None:
            primary = self._primaries[endpoint] = Primary(
                endpoint,
                self._dialer.dial,
                self,
                pipelines=self._bounds.pipelines,
                patience=self._bounds.answer,
                durability=self._durability,
            )
        primary.put(pending)

    def answered(self, pending: Pending, answer: Any) -> None:
        """See `primary.Owner`."""
        self._end(pending, answer)

    def failed(self, pending: Pending, at: Endpoint, error: Exception) -> None:
        """See `primary.Owner`."""
        pending.tries += 1
        match remedy(error, at, pending.name):
            case Again() as again:
                self._rest(pending, again)
            case Elsewhere(slot, asking=True) if pending.script is not None and pending.script.makes_keys:
                # There, keys that it makes from its own seem not to exist until they have moved too.
                self._rest(pending, Again(f"slot {slot} moves", look=False, moves=True))
            case Elsewhere(slot, to, asking):
                self._redirect(pending, slot, to, asking)
            case InFull() if pending.unknown < _UNKNOWN:
                pending.unknown += 1
                self._route(pending)
            case InFull():
                self._end(pending, error=StoreConflictError(f"{at}: {pending.name} does not stay there"))
            case StoreError() as final:
                self._end(pending, error=final)

    def connected(self, at: Endpoint, history: str) -> None:
        """See `primary.Owner`."""
        before = self._histories.get(at, history)
        self._histories[at] = history
        if history != before and not self._durability.disks:
            self.on_lost()

    def _redirect(self, pending: Pending, slot: int, to: Endpoint, asking: bool) -> None:
        if self.spans:
            self._end(pending, error=StoreConflictError(f"{self.url} is of a cluster: its url is redis+cluster://"))
            return
        pending.target = to if asking else None
        pending.asking = asking
        if not asking:
            self._table[slot] = to
            self.look()
        pending.reason, pending.moves = f"slot {slot} moves", True
        self._pause(pending, _PAUSES[min(pending.tries, len(_PAUSES)) - 1])

    def _rest(self, pending: Pending, again: Again) -> None:
        if again.look:
            self.look()
        if pending.asking:
            pending.target, pending.asking = None, False
        pending.reason, pending.moves = again.reason, again.moves
        self._pause(pending, _PAUSES[min(max(pending.tries, 1), len(_PAUSES) - 1)])

    def _pause(self, pending: Pending, pause: float) -> None:
        if not pause:
            self._route(pending)
        elif pause in self._resting:
            self._resting[pause].calls.append(pending)
        else:
            self._resting[pause] = _Resting([pending], self._loop.call_later(pause, self._wake, pause))

    def _wake(self, pause: float) -> None:
        for pending in self._resting.pop(pause).calls:
            self._route(pending)

    def _end(self, pending: Pending, answer: Any = None, error: StoreError | None = None) -> None:
        """Once: who was told that it takes too long is not told again."""
        if pending not in self._asked:
            return
        del self._asked[pending]
        if pending.room is not None:
            pending.room.release()
        if error is not None and not pending.moves:
            self._told(error)
        if pending.future.done():
            return
        if error is None:
            pending.future.set_result(answer)
        else:
            pending.future.set_exception(error)

    def _expire(self) -> None:
        self._expiry = None
        now = self._loop.time()
        late = []
        for pending in self._asked:
            if pending.deadline > now:
                self._expiry = self._loop.call_at(pending.deadline, self._expire)
                break
            late.append(pending)
        for pending in late:
            pending.moves = False  # by now it does
            self._give_up(pending, self._bounds.limit)

    def _give_up(self, pending: Pending, limit: float) -> None:
        reasons = [pending.reason, str(self._trouble or "")]
        reason = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
        self._end(pending, error=unavailable(reason or f"{self.url} does not answer", limit))

    def _told(self, error: StoreError) -> StoreError:
        self._on_error(error)
        return error

    # --- who is primary

    async def dial(self, endpoint: Endpoint) -> Connection:
        """A connection of one's own. Raises one of `connection.TROUBLE`."""
        if self._closed:
            raise _closed()
        return await self._dialer.dial(endpoint)

    def primary_of(self, key: bytes) -> Endpoint | None:
        """Who has it, as far as is known; None: nobody."""
        return self._table[self._topology.slot(key)]

    def is_mute(self, key: bytes) -> bool:
        """Whether who has it has said nothing for PROMPT seconds: nobody asked, or it is away."""
        primary = self._primary_at(self.primary_of(key))
        return primary is None or primary.is_silent(self._loop.time() - PROMPT, PROMPT)

    def patience(self, key: bytes) -> float:
        """Seconds after which who has it counts as away."""
        primary = self._primary_at(self.primary_of(key))
        return _GLANCE if primary is not None and primary.is_given_up else PROMPT

    def _primary_at(self, at: Endpoint | None) -> Primary | None:
        return None if at is None else self._primaries.get(at)

    def look(self) -> None:
        """Have it found out soon who is primary."""
        self._wanted.set()

    async def _begin(self) -> None:
        first = self._topology.first()
        if first is not None:
            self._table = first
            return
        deadline = self._loop.time() + self._bounds.limit
        while True:
            try:
                self._table = await self._topology.look()
            except StoreUnavailableError as e:
                if self._loop.time() >= deadline:
                    raise unavailable(str(e), self._bounds.limit) from None
                await asyncio.sleep(_PAUSES[-1])
            else:
                break
        self._looker = asyncio.create_task(self._keep_looking(), name="redis topology")

    async def _keep_looking(self) -> None:
        every = _LOOK_EVERY if self.url.kind is Kind.SENTINEL else None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await self._wanted.wait()
            trusted = not self._wanted.is_set()
            self._wanted.clear()
            try:
                self._apply(await self._topology.look(self._primaries, trusted=trusted))
                self._trouble = None
            except StoreError as e:
                self._trouble = e
            except Exception:  # a fault of ours, which must not be the end of all looks
                log.exception("who is primary could not be found out")
            await asyncio.sleep(_LOOK_PAUSE)

    def _apply(self, table: Table) -> None:
        there = set(table)
        gone = set(self._table) - there
        if there != set(self._table):
            now = ", ".join(sorted(str(at) for at in there if at))
            events.tell(Event.STORE_PRIMARIES, "primaries of %s now: %s", self.url, now, primaries=now)
        self._table = table
        if gone - {None} and not self._durability.replicas:
            self.on_lost()
        self._histories = {at: history for at, history in self._histories.items() if at in there}
        self._rooms = {at: room for at, room in self._rooms.items() if at in there}  # others go with their calls
        self._retired = {primary for primary in self._retired if not primary.is_over}
        for endpoint in [endpoint for endpoint in self._primaries if endpoint not in there]:
            primary = self._primaries.pop(endpoint)
            self._retired.add(primary)
            for pending in primary.retire():
                self._route(pending)


def _closed() -> StoreConflictError:
    return StoreConflictError("the store is closed")
