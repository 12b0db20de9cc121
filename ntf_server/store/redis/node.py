"""One node of those that share a Redis: its clock, the shards that it holds, and its memory of what they have.

A shard is held under a lease with a fence, as each SMP server is: whoever writes what comes of a claim shows the fence,
and is refused once another node has the shard. The server's TIME is the only clock; to that scripts add what `ahead`
says, so that the store's time goes on evenly when somebody sets the server's clock.
"""

import asyncio
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Awaitable, Callable, Container, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from ntf_server.observe.events import Event, EventLog
from ntf_server.store.clock import Clock
from ntf_server.store.contract import (
    FencedError,
    StoreConflictError,
    StoreCorruptError,
    StoreError,
    StoreUnavailableError,
)
from ntf_server.store.memory import State, provider_of
from ntf_server.store.pulse import Holding
from ntf_server.store.redis.asking import Ask, Asking, Parts, Word
from ntf_server.store.redis.call import Call
from ntf_server.store.redis.database import PROMPT, Database
from ntf_server.store.redis.holders import Holders
from ntf_server.store.redis.names import Names
from ntf_server.store.redis.remedy import unavailable
from ntf_server.store.redis.rendezvous import Rendezvous
from ntf_server.store.redis.script import Script
from ntf_server.store.redis.server_clock import ServerClock
from smp_bridge.ntf import Provider

events = EventLog(__name__)

T = TypeVar("T")

LEASE: Final = 6.0  # seconds
_LEASE_MS: Final = round(LEASE * 1000)
RENEW: Final = 2.0  # seconds between two renewals
_SOON: Final = 0.5  # the same, while a shard is about to lose its node, or has lost it and nobody has taken it yet
_AT_LAST: Final = 0.05  # the same, of a node that leaves and still has shards
_ALIVE: Final = 5.0  # seconds that a node counts as living after it was heard of
_DEAF: Final = 24 * 3600  # seconds without any node, when one starts, that count for no registration's silence
_HEARD: Final = 200  # registrations at once
_RUN: Final = 8  # bytes
_RECOVERED: Final = 500  # tokens at once
_PUBLISH: Final = Script.load("publish")
_ALL: Final = 1 << 53  # more calls than a node makes
_KEPT: Final = 100_000  # changes; who is further behind looks at all that it holds
NODES: Final = b"nodes"  # kind of a change: who lives, or what nobody has


class Node(Asking):
    """`state`: claims and what else is in memory alone. `manual`: its clock is a test's; else the server's is the only
    one. `store_id`: of the store that it was opened on.
    """

    def __init__(
        self, database: Database, names: Names, state: State, identity: bytes, store_id: bytes, *, manual: bool
    ) -> None:
        super().__init__(database, names)
        self.on_silent = self._fell_silent
        self.state: Final = state
        self.id: Final = identity
        self.held: dict[int, bytes] = {}  # shards and their fences
        self.leaving: set[int] = set()  # of these, which should be another node's
        self.addresses: dict[bytes, Any] = {}
        self.ending: dict[bytes, int] = {}  # tokens whose push is being recorded, and which call had handed it out
        self.taking: set[bytes] = set()  # tokens that a take has asked for, and has no answer yet
        self.time: Final = ServerClock(database, names, state, manual=manual, matters=2 * RENEW)
        self._unrecovered: set[int] = set()  # shards that are held, and what their last holder had is not yet due
        self.on_effects: Callable[[], None] = lambda: None
        self.made_due: Callable[[Iterable[bytes]], None] = lambda _: None  # of these tokens something is due now
        self.has_due = asyncio.Event()  # something may be, in shards of this node, that memory does not know of
        self.on_corrupt: Callable[[StoreCorruptError], None] = lambda _: None
        self.corrupt: StoreCorruptError | None = None  # the store is gone: nothing is asked for any more
        self._store_id = store_id
        self.rendezvous: Final = Rendezvous()
        self.holders: Final = Holders()
        self.has_left = False  # it is to stop, and is none of them any more
        self._unsettled = False  # some shard is about to lose its node, or has none
        self._stale = False  # who lives, or what nobody has, is not as it was when that was looked at
        self._has_news = False  # for other nodes: they may take something
        self._kept_at = float("-inf")  # steady seconds
        self._keeping: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None  # who lives
        self._is_deaf = False  # that is not known: what says so does not answer
        self._run: Final = state.random(_RUN)  # tells this node's start from all others
        self._unheard: dict[int, int] = {}  # shards that do not know yet for how many seconds no node ran
        self._regaining: set[asyncio.Task[None]] = set()

    # --- time

    @property
    def clock(self) -> Clock:
        """See `ServerClock.own`."""
        return self.state.clock

    @property
    def ahead(self) -> Word:
        """See `ServerClock`."""
        return self.time.ahead

    @property
    def shift(self) -> int:
        """See `ServerClock`."""
        return self.time.shift

    def wall(self) -> float:
        """See `ServerClock`."""
        return self.time.wall()

    def now(self) -> float:
        """See `ServerClock`."""
        return self.time.now()

    # --- shards

    def fence(self, shard: bytes) -> bytes:
        """Under which this node has a shard; empty if it has not."""
        return self.held.get(self.names.number_of[shard], b"")

    @property
    def fences(self) -> dict[bytes, bytes]:
        """Shards that are held and can be had now, and their fences."""
        return self._fences(())

    @property
    def giving(self) -> dict[bytes, bytes]:
        """Those of them that something may be handed out of."""
        return self._fences(self.leaving | self._unrecovered)

    @property
    def recovered(self) -> dict[bytes, bytes]:
        """Those of them whose claims are all this node's: out of others nothing is handed out yet."""
        return self._fences(self._unrecovered)

    def _fences(self, barred: Container[int]) -> dict[bytes, bytes]:
        held = self.held.items()
        return {self.names.shards[n]: fence for n, fence in held if n not in barred and n not in self.silent}

    def strand(self) -> None:
        """The store may have handed out of any shard what memory has not."""
        self.handed.strand(self.held)

    # --- leases

    async def begin(self) -> None:
        """Before anything is done: the time, leases that are to be renewed. Raises StoreError, StoreCorruptError."""
        if self.corrupt is not None:
            raise self.corrupt
        s = self.state
        await self.time.look()
        s.steady = self.clock.steady()
        now = self.now()
        s.now, s.now_ms = int(now), int(now * 1000)
        stranded = self.handed.stranded & self.held.keys()
        if self._stale or s.steady - self._kept_at >= self._pause or stranded - self.silent:
            if self._keeping is None or self._keeping.done():
                self._keeping = _task(self._keep(), "leases")
            await asyncio.shield(self._keeping)

    @property
    def _pause(self) -> float:
        if self.has_left and self.held:
            return _AT_LAST
        return _SOON if self._unsettled else RENEW

    @property
    def is_alone(self) -> bool:
        """No other node lives, as far as is known."""
        return list(self.rendezvous.nodes) == [self.id]

    def holding(self) -> Holding:
        """What this node has, as far as is known."""
        return Holding(len(self.held), len(self.names.shards), len(self.silent), len(self.rendezvous.nodes))

    async def look(self) -> None:
        """Who lives, and what is to be taken, is not as it was."""
        self._stale = True
        while self._stale:  # what is under way may have looked before
            await self.begin()

    async def leave(self) -> int:
        """See `Store.leave`: how many shards are held, and can be given."""
        if not self.has_left:
            self.has_left = self._has_news = True
            await self.look()
        return len(self.fences)

    async def open(self) -> None:
        """The first time."""
        gap = await self.time.begin(self._run)
        if gap > _DEAF:
            self._unheard = dict.fromkeys(range(len(self.names.shards)), gap)
            for number in list(self._unheard):
                await self._hear(number, self.ask_some)
        await self.begin()

    def doubt(self) -> None:
        """The store did not have what this node wrote: whether it is there at all is looked at next."""
        self._stale = True

    async def live(self, ms: int, last: int = 0) -> list[bytes]:
        """This node does, for so long; those that live. `last`: now in ms, or 0. Raises StoreCorruptError."""
        keys = [self.names.nodes, self.names.clock, self.names.store]
        alive: list[bytes] | None = await self.run("alive", keys, self.ahead, self.id, ms, last, self._store_id)
        if alive is None:
            raise self._gone()
        return alive

    def _gone(self) -> StoreCorruptError:
        """What is written now is no part of what was there."""
        self.corrupt = StoreCorruptError(
            f"{self.database.url}: the store was emptied or replaced while the relay uses it (its id is there no more):"
            " nothing is written any more. Put it back, by the append-only file or a backup, then start again; a start"
            " on an empty Redis begins a new store, without the devices of before"
        )
        self.held.clear()
        self.on_corrupt(self.corrupt)
        return self.corrupt

    async def _keep(self) -> None:
        shards = self.names.shards
        steady = self.clock.steady()
        self._stale = False
        await self._see_who_lives()
        mine = {n for n, shard in enumerate(shards) if self.is_mine(shard)}
        await self._give(set(self.held) - mine)
        if self._has_news and not self._is_deaf:
            await self._tell_news()
        asked = [n for n in range(len(shards)) if n in self.held or not self.has_left]
        parts: Parts = {shards[n]: [self.held.get(n, b"" if n in mine else b"-")] for n in asked}
        some = await self.run_some("hold", [self.ahead, self.id, _LEASE_MS], parts)
        fences = dict(zip(some.shards, (fence for answer in some.answers for fence in answer), strict=True))
        self._unsettled = b"-" in fences.values()
        self._took({self.names.number_of[shard]: fence for shard, fence in fences.items()})
        self._kept_at = steady
        await self._recover([n for n in self.held if n not in self.silent], self.ask_some)
        await self._hasten()

    async def _see_who_lives(self) -> None:
        """In a cluster others have leases that go on by what is known, if what says that does not answer."""
        if self.database.spans or not self.rendezvous.nodes:
            await self._ask_who_lives()
            return
        if self._asking is None or self._asking.done():
            self._asking = _task(self._ask_who_lives(), "who lives")
        if not self._is_deaf:
            patience = self.database.patience(self.names.clock)
            await asyncio.wait([self._asking], timeout=patience)
            try:
                if not self._asking.done():
                    raise unavailable("it does not say which nodes live", patience)
                self._asking.result()
            except StoreUnavailableError as e:
                self._is_deaf = True
                self._fell_silent({self.names.clock: e})

    async def _ask_who_lives(self) -> None:
        await self.time.look_at_server()
        self.rendezvous.nodes = await self.live(0 if self.has_left else round(_ALIVE * 1000), self.time.last)
        self._is_deaf = False

    async def _tell_news(self) -> None:
        [told] = await self.database.run_prompt([published(self.names, b"k", NODES)])
        if not isinstance(told, StoreError):
            self._has_news = False
        elif self.database.spans:
            raise told

    def _took(self, fences: Mapping[int, bytes]) -> None:
        """What became of the leases of these shards."""
        before = self.held
        held = {n: fence for n, fence in fences.items() if fence not in (b"", b"-")}
        self.held = {n: fence for n, fence in before.items() if n not in fences} | held
        lost = {n for n in fences if n in before and held.get(n) != before[n]}
        if lost:
            self._forget(lost)
        new = {n for n in held if n not in before or n in lost}
        self._unrecovered = {n for n in self._unrecovered | new if n in self.held}
        if new:
            self.has_due.set()

    def is_mine(self, name: bytes) -> bool:
        """Whether this node should hold it, of all that live."""
        return not self.has_left and (self.rendezvous.holder(name) or self.id) == self.id

    async def _give(self, numbers: set[int]) -> None:
        """To whom should have them: nothing more is handed out of them, and they go when nothing of theirs is out.

        What only waits in memory is recovered by who takes them: it may wait for a provider that is away.
        """
        number = self.names.number
        self.leaving = numbers
        busy = {number(token) for token in (*self.state.claims, *self.ending)} if numbers else set()
        idle = numbers - busy
        if idle and self.handed.is_idle:
            parts: Parts = {self.names.shards[n]: [self.held.pop(n)] for n in idle}
            self._forget(idle)
            self._has_news = True
            await self.run_some("give", [self.ahead], parts)

    def _forget(self, lost: set[int]) -> None:
        """What was claimed there is another's now."""
        s, number = self.state, self.names.number
        for kept in (s.claims, s.cooling, s.ready):
            for token in [token for token in kept if number(token) in lost]:
                s.forget(token)
        s.journal.forget()

    async def _recover(self, numbers: Iterable[int], ask: Ask) -> None:
        """Of these shards what the last holder had in memory, or we should have and have not, is due."""
        s, stranded = self.state, self.handed.stranded
        numbers = [n for n in numbers if n in stranded or n in self._unrecovered]
        if not numbers:
            return
        known: defaultdict[int, list[Word]] = defaultdict(list)
        marks = dict.fromkeys((*s.ready, *s.eager), b"") | self.ending | {t: held.mark for t, held in s.claims.items()}
        for token, mark in marks.items():
            known[self.names.number(token)] += (token, mark)
        settled = self.handed.settled
        for n in numbers:
            if await self._recover_shard(n, _ALL if n in self._unrecovered else settled, known[n], ask):
                self._unrecovered.discard(n)
                self.handed.recovered(n, settled)
        for provider in {provider_of(lane) for lane in s.backlog}:
            s.effects.due(provider, 0.0)

    async def _recover_shard(self, number: int, settled: int, known: Sequence[Word], ask: Ask) -> bool:
        """Whether it can be had."""
        left = 1
        while left and number in self.held:
            part = (self.held[number], _RECOVERED, settled, *known)
            try:
                answers = await ask("recover", [self.ahead], {self.names.shards[number]: part})
            except FencedError:
                break
            if not answers:
                return False
            [[left, *lanes]] = answers
            self.owe(lanes)
        return True

    async def _hasten(self) -> None:
        """What was made due before somebody saw that the clock was set forward would wait for as long as that."""
        if not (step := self.time.was_ahead):
            return
        head: list[Word] = [self.ahead, round(step * 1000), round(3 * RENEW * 1000), *(p.encode() for p in Provider)]
        for lanes in await self.ask_some("hasten", head, {shard: [] for shard in self.fences}):
            self.owe(lanes)
        self.time.settle()

    async def _hear(self, number: int, ask: Ask) -> None:
        """A shard's registrations were not silent while no node ran."""
        gap, last = self._unheard[number], b""
        for calls in itertools.count():
            answers = await ask("hear", [gap, self._run, calls], {self.names.shards[number]: [last, _HEARD]})
            if not answers:
                return
            [last] = answers
            if not last:
                break
        del self._unheard[number]

    async def close(self) -> None:
        """Give all back. Raises StoreError, StoreCorruptError."""
        self.on_silent = lambda _: None  # others take it
        for task in (*self._regaining, self._asking):
            if task is not None:
                task.cancel()
        try:
            async with asyncio.timeout(None if self.database.spans else PROMPT):
                await self.live(0)
                await self.time.set(0.0)
        except (StoreUnavailableError, TimeoutError):
            if self.database.spans:
                raise
        await self.ask_some("give", [self.ahead], {shard: [fence] for shard, fence in self.fences.items()})
        self.held.clear()
        await self._tell_news()

    # --- shards that cannot be had now

    def _fell_silent(self, keys: Mapping[bytes, StoreError]) -> None:
        """Nothing is asked of these shards, nor of others that their primary has, but whether they are there again: so
        they cost nobody time, and nothing is handed out of them.

        What is held stays so, with what was claimed there: if nobody else could take it meanwhile, it goes on.
        """
        database, shards = self.database, self.names.shards
        mute = {database.primary_of(key) for key in keys if database.is_mute(key)}
        for number, shard in enumerate(shards):
            if number not in self.silent and (shard in keys or database.primary_of(shard) in mute):
                if not self.silent:
                    error = next(iter(keys.values()))
                    text = "shards of tokens wait for a server that is away: %s"
                    events.tell(Event.SHARDS_TROUBLE, text, error, reason=str(error))
                self.silent.add(number)
                task = _task(self._regain(number), "silent shard")
                self._regaining.add(task)
                task.add_done_callback(self._regaining.discard)

    async def _regain(self, number: int) -> None:
        while number in self.silent and self.corrupt is None:
            try:
                await self._ask_for(number)
            except StoreUnavailableError:
                await asyncio.sleep(_AT_LAST)
            except (StoreConflictError, StoreCorruptError):  # closed, or gone
                return
            except StoreError:
                await asyncio.sleep(RENEW)

    async def _ask_for(self, number: int) -> None:
        """It is renewed, and what was owed there is due, before anybody uses it. Who does not have it takes it later,
        if nobody renews it then: else what was pushed could not be recorded.
        """
        shard = self.names.shards[number]
        if number in self.held:
            held = {shard: [self.held[number]]}
            [[fence]] = await self.run_on("hold", [self.ahead, self.id, _LEASE_MS], held)
            self._took({number: fence})
        else:
            await self.database.command(b"EXISTS", shard, key=shard, writes=False)
            await asyncio.sleep(_SOON)
            self._stale = True
        if number in self._unheard:
            await self._hear(number, self.run_on)
        await self._recover([number], self.run_on)
        self.silent.discard(number)
        self.has_due.set()
        for token, ready in self.state.ready.items():  # which only memory knows of
            if self.names.number(token) == number:
                self.state.effects.due(provider_of(ready.lane), 0.0)
        self.on_effects()
        if not self.silent:
            events.tell(Event.SHARDS_WELL, "all shards of tokens can be had again")

    # --- what is due

    def owe(self, lanes: Iterable[bytes]) -> None:
        """Something in these lanes is due now, of shards that are ours."""
        for lane in lanes:
            self.state.owe(lane)
            self.state.effects.due(provider_of(lane), 0.0)

    def done(self) -> None:
        """An operation is over: tell what it came to."""
        self.state.journal.forget()
        self.on_effects()


def published(names: Names, *fields: Word) -> Call:
    """To all nodes, through the stream of changes."""
    return Call(_PUBLISH, [names.changes], (_KEPT, *fields))


def _task(work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
    """How it failed is known, whoever waited for it may be gone by then."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(_heard_of)
    return task


def _heard_of(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


async def unless_cancelled(work: Awaitable[T], lost: Callable[[T], None]) -> T:
    """Its result; what a caller who is cancelled would have got goes to `lost`."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:

        def over(done: "asyncio.Future[T]") -> None:
            if not done.cancelled() and done.exception() is None:
                lost(done.result())

        task.add_done_callback(over)
        raise


def identity(random: Callable[[int], bytes]) -> bytes:
    """A node's own name, in each run another."""
    return hashlib.sha256(random(16)).hexdigest()[:16].encode()
