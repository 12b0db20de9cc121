"""One node of those that share a Redis: its clock, the shards that it holds, and its memory of what they have.

A shard is held under a lease with a fence, as each SMP server is: whoever writes what comes of a claim shows the fence,
and is refused once another node has the shard. The server's TIME is the only clock; to that scripts add what `ahead`
says, so that the store's time goes on evenly when somebody sets the server's clock.
"""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from ntf_server.store.clock import Clock
from ntf_server.store.contract import FencedError, StoreCorruptError
from ntf_server.store.memory import State, provider_of
from ntf_server.store.redis.call import Call
from ntf_server.store.redis.database import Database
from ntf_server.store.redis.names import Names, server_id
from ntf_server.store.redis.rendezvous import Rendezvous
from ntf_server.store.redis.script import Script, scripts
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import Provider

T = TypeVar("T")
Word = bytes | str | int

LEASE: Final = 6.0  # seconds
RENEW: Final = 2.0  # seconds between two renewals
_SOON: Final = 0.5  # the same, while a shard is about to lose its node, or has lost it and nobody has taken it yet
_AT_LAST: Final = 0.05  # the same, of a node that leaves and still has shards
_ALIVE: Final = 5.0  # seconds that a node counts as living after it was heard of
_STEP: Final = 2.0  # seconds that two clocks may go apart between two renewals
_DEAF: Final = 24 * 3600  # seconds without any node, when one starts, that count for no registration's silence
_HEARD: Final = 200  # registrations at once
_RECOVERED: Final = 500  # tokens at once
_PUBLISH: Final = Script.load("publish")
_AT_ONCE: Final = 100  # tokens in a call, or few more: none is to hold the server for long
_NOT_AHEAD: Final = 0.0, 0.0
_ALL: Final = 1 << 53  # more calls than a node makes
_KEPT: Final = 100_000  # changes; who is further behind looks at all that it holds
NODES: Final = b"nodes"  # kind of a change: who lives, or what nobody has


class Node:
    """`state`: claims and what else is in memory alone. `manual`: its clock is a test's; else the server's is the only
    one. `store_id`: of the store that it was opened on.
    """

    def __init__(
        self, database: Database, names: Names, state: State, identity: bytes, store_id: bytes, *, manual: bool
    ) -> None:
        self.database: Final = database
        self.names: Final = names
        self.state: Final = state
        self.id: Final = identity
        self.held: dict[int, bytes] = {}  # shards and their fences
        self.leaving: set[int] = set()  # of these, which should be another node's
        self.addresses: dict[bytes, Any] = {}
        self.ending: dict[bytes, int] = {}  # tokens whose push is being recorded, and which call had handed it out
        self.taking: set[bytes] = set()  # tokens that a take has asked for, and has no answer yet
        self.calls = 0  # that hand something out; their numbers mark what each has handed out
        self._handing: dict[object, int] = {}  # operations under way that do so: how many calls there were before
        self._stranded: int | None = None  # of what calls up to this one have handed out, memory may not have all
        self._unrecovered: set[int] = set()  # shards that are held, and what their last holder had is not yet due
        self._scripts = {name: Script.load(name) for name in scripts()}
        self._manual = manual
        self.on_effects: Callable[[], None] = lambda: None
        self.made_due: Callable[[Iterable[bytes]], None] = lambda _: None  # of these tokens something is due now
        self.has_due = asyncio.Event()  # something may be, in shards of this node, that memory does not know of
        self.on_corrupt: Callable[[StoreCorruptError], None] = lambda _: None
        self.corrupt: StoreCorruptError | None = None  # the store is gone: nothing is asked for any more
        self._store_id = store_id
        self._offset = 0  # ms, of the store's clock
        self._version = b"0"
        self._server: tuple[float, float] | None = None  # the server's clock and ours, when it was heard last
        self._heard_late = False  # that may be seconds wrong
        self._was_ahead = _NOT_AHEAD  # by how many seconds the server's clock was set, until when that matters
        self.rendezvous: Final = Rendezvous()
        self.has_left = False  # it is to stop, and is none of them any more
        self._unsettled = False  # some shard is about to lose its node, or has none
        self._stale = False  # who lives, or what nobody has, is not as it was when that was looked at
        self._has_news = False  # for other nodes: they may take something
        self._kept_at = float("-inf")  # steady seconds
        self._keeping: asyncio.Task[None] | None = None

    # --- time

    @property
    def clock(self) -> Clock:
        """Its steady half counts everywhere; its wall half only where it is a test's."""
        return self.state.clock

    @property
    def ahead(self) -> Word:
        """What scripts add to the server's time, in ms; or a test's time (see `now_ms` of the prelude)."""
        return f"={self._manual_ms() + self._offset}" if self._manual else self._offset

    def _manual_ms(self) -> int:
        return round(self.clock.wall() * 1000)

    @property
    def shift(self) -> int:
        """Seconds that the store's clock is ahead of what people see."""
        return round(self._offset / 1000)

    def wall(self) -> float:
        """Unix seconds, as people see them."""
        if self._manual or self._server is None:
            return self.clock.wall()
        server, steady = self._server
        return server + self.clock.steady() - steady

    def now(self) -> float:
        """The store's time, in seconds."""
        return self.wall() + self._offset / 1000

    def _heard(self, server: float, *, late: bool) -> float:
        """By how many seconds the server's clock was set since it was heard last, and not late."""
        steady = self.clock.steady()
        before, self._server = None if self._heard_late else self._server, (server, steady)
        self._heard_late = late
        return 0.0 if before is None else (server - before[0]) - (steady - before[1])

    async def _look_at_clock(self, *, begins: bool = False) -> None:
        step = self.clock.read().step if self._manual else 0.0
        if step or begins:
            await self._set_clock(step, begins=begins)
        if self._manual:
            self.clock.settle()

    async def _look_at_server(self) -> None:
        """Before its time is used: leases must not end because it was set. A late answer tells nothing of that;
        its time counts where none is known, since this machine's clock may be anywhere.
        """
        began = self.clock.steady()
        seconds, micros = await self.database.command(b"TIME", key=self.names.clock, writes=False)
        late = self.clock.steady() - began >= _STEP / 2
        if late and self._server is not None:
            return
        if abs(step := self._heard(int(seconds) + int(micros) / 1e6, late=late)) > _STEP:
            await self._set_clock(step)
            if step > 0:
                self._was_ahead = step, self.clock.steady() + 2 * RENEW

    async def _set_clock(self, step: float, *, begins: bool = False) -> None:
        begin = f"={self._manual_ms()}" if self._manual else 0
        args = (begin, self._version, round(step * 1000), "1" if begins else "")
        offset, self._version, gap = await self.run("clock", [self.names.clock], *args)
        self._offset = int(offset)
        if gap > _DEAF:
            await self._hear(gap)
        if step:
            self.state.effects.stepped = step

    async def _hear(self, seconds: int) -> None:
        for shard in self.names.shards:
            last = await self.run("hear", [shard], seconds, b"", _HEARD)
            while last:
                last = await self.run("hear", [shard], seconds, last, _HEARD)

    # --- scripts

    async def run(self, name: str, keys: Sequence[bytes], *args: Word) -> Any:
        """What a script gives (`lua/NAME.lua`)."""
        return await self.database.run(self.call(name, keys, *args))

    def call(self, name: str, keys: Sequence[bytes], *args: Word) -> Call:
        """To be run with others."""
        return Call(self._scripts[name], keys, args)

    async def run_on(
        self,
        name: str,
        head: Sequence[Word],
        parts: Mapping[bytes, Sequence[Word]],
        tokens: Mapping[bytes, Sequence[Any]] | None = None,
    ) -> list[Any]:
        """A script that takes several shards at once, each with its part of the arguments behind `head`.

        One call for each shard, or, where one primary has all slots, one for about _AT_ONCE of the `tokens` that the
        parts are of: an answer of each call, in the order of the parts.
        """
        if not parts:
            return []
        calls, shards, words, count = [], list[bytes](), list[Word](), 0
        for shard, part in parts.items():
            shards.append(shard)
            words += part
            count += len(tokens[shard]) if tokens else 0
            if count >= _AT_ONCE or not self.database.spans:
                calls.append(self.call(name, shards, *head, *words))
                shards, words, count = [], [], 0
        if shards:
            calls.append(self.call(name, shards, *head, *words))
        return await self.database.run_all(calls) if len(calls) > 1 else [await self.database.run(calls[0])]

    # --- what several operations read or write

    async def fields(self, token: bytes, names: Sequence[bytes]) -> list[Any]:
        """Of a registration; None for each that it has not."""
        key, shard = self.names.token(token), self.names.shard(token)
        found: list[Any] = await self.database.command(b"HMGET", key, *names, key=shard, writes=False)
        return found

    async def exists(self, token: bytes) -> bool:
        """Whether there is such a registration."""
        key, shard = self.names.token(token), self.names.shard(token)
        return bool(await self.database.command(b"EXISTS", key, key=shard, writes=False))

    async def known(self) -> dict[bytes, bytes]:
        """Ids of all SMP servers, and their addresses."""
        name = self.names.servers
        found = await self.database.command(b"HGETALL", name, key=name, writes=False)
        return dict(zip(found[::2], found[1::2], strict=True))

    async def know(self, server: ServerAddress) -> None:
        """It is one of them."""
        name = self.names.servers
        await self.database.command(b"HSETNX", name, server_id(server), server.plain.encode(), key=name)

    # --- shards

    def by_shard(self, tokens: Iterable[bytes]) -> dict[bytes, list[bytes]]:
        """Those of each shard."""
        out: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for token in tokens:
            out[self.names.shard(token)].append(token)
        return dict(out)

    def fence(self, shard: bytes) -> bytes:
        """Under which this node has a shard; empty if it has not."""
        return self.held.get(self.names.number_of[shard], b"")

    @property
    def fences(self) -> dict[bytes, bytes]:
        """Shards that are held, and their fences."""
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
        return {self.names.shards[n]: fence for n, fence in self.held.items() if n not in barred}

    def next_call(self) -> int:
        """A number for a call that hands something out, as it may be done twice."""
        self.calls += 1
        return self.calls

    @contextmanager
    def handing(self) -> Iterator[None]:
        """While something is handed out: what the store has handed out, and memory has not yet, is not lost."""
        operation = object()
        self._handing[operation] = self.calls
        try:
            yield
        finally:
            del self._handing[operation]

    def strand(self) -> None:
        """The store may have handed out what memory has not: it is due again when those under way have ended."""
        self._stranded = self.calls

    @property
    def _settled(self) -> int:
        """Memory has, or lost, all that was handed out by calls up to this one."""
        return min(self._handing.values(), default=self.calls)

    @property
    def _is_stranded(self) -> bool:
        return self._stranded is not None and self._stranded <= self._settled

    # --- leases

    async def begin(self) -> None:
        """Before anything is done: the time, leases that are to be renewed. Raises StoreError, StoreCorruptError."""
        if self.corrupt is not None:
            raise self.corrupt
        s = self.state
        await self._look_at_clock()
        s.steady = self.clock.steady()
        now = self.now()
        s.now, s.now_ms = int(now), int(now * 1000)
        if self._stale or s.steady - self._kept_at >= self._pause or self._is_stranded:
            if self._keeping is None or self._keeping.done():
                self._keeping = asyncio.create_task(self._keep(), name="leases")
                self._keeping.add_done_callback(_heard_of)
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

    async def look(self) -> None:
        """Who lives, and what is to be taken, is not as it was."""
        self._stale = True
        while self._stale:  # what is under way may have looked before
            await self.begin()

    async def leave(self) -> int:
        """See `Store.leave`: how many shards are held."""
        if not self.has_left:
            self.has_left = self._has_news = True
            await self.look()
        return len(self.held)

    async def open(self) -> None:
        """The first time."""
        await self._look_at_clock(begins=True)
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
        if not self._manual:
            await self._look_at_server()
        ahead = self.ahead
        last = round(self.now() * 1000) if self._manual or self._server else 0
        lives = 0 if self.has_left else round(_ALIVE * 1000)
        self.rendezvous.nodes = await self.live(lives, last)
        mine = {n for n, shard in enumerate(shards) if self.is_mine(shard)}
        await self._give(set(self.held) - mine)
        if self._has_news:
            await publish(self.database, self.names, b"k", NODES)
            self._has_news = False
        asked = [n for n in range(len(shards)) if n in self.held or not self.has_left]
        parts = {shards[n]: [self.held.get(n, b"" if n in mine else b"-")] for n in asked}
        answers = await self.run_on("hold", [ahead, self.id, round(LEASE * 1000)], parts)
        fences = dict(zip(asked, (fence for answer in answers for fence in answer), strict=True))
        self._unsettled = b"-" in fences.values()
        before, self.held = self.held, {n: fence for n, fence in fences.items() if fence not in (b"", b"-")}
        lost = {n for n, fence in before.items() if self.held.get(n) != fence}
        if lost:
            self._forget(lost)
        new = {n for n in self.held if n not in before or n in lost}
        self._unrecovered = {n for n in self._unrecovered | new if n in self.held}
        if new:
            self.has_due.set()
        self._kept_at = steady
        await self._recover()
        await self._hasten()

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
        if idle and not self._handing:
            parts = {self.names.shards[n]: [self.held.pop(n)] for n in idle}
            self._forget(idle)
            self._has_news = True
            await self.run_on("give", [self.ahead], parts)

    def _forget(self, lost: set[int]) -> None:
        """What was claimed there is another's now."""
        s, number = self.state, self.names.number
        for kept in (s.claims, s.cooling, s.ready):
            for token in [token for token in kept if number(token) in lost]:
                s.forget(token)
        s.journal.forget()

    async def _recover(self) -> None:
        """What the last holder had in memory, or we should have and have not, is due."""
        s, stranded = self.state, self._stranded if self._is_stranded else None
        if not self._unrecovered and stranded is None:
            return
        known: defaultdict[int, list[Word]] = defaultdict(list)
        marks = dict.fromkeys((*s.ready, *s.eager), b"") | self.ending | {t: held.mark for t, held in s.claims.items()}
        for token, mark in marks.items():
            known[self.names.number(token)] += (token, mark)
        settled = self._settled
        for n in list(self._unrecovered if stranded is None else self.held):
            await self._recover_shard(n, _ALL if n in self._unrecovered else settled, known[n])
            self._unrecovered.discard(n)
        if stranded is not None and self._stranded == stranded:
            self._stranded = None
        for provider in {provider_of(lane) for lane in s.backlog}:
            s.effects.due(provider, 0.0)

    async def _hasten(self) -> None:
        """What was made due before somebody saw that the clock was set forward would wait for as long as that."""
        step, until = self._was_ahead
        if not step:
            return
        head: list[Word] = [self.ahead, round(step * 1000), round(3 * RENEW * 1000), *(p.encode() for p in Provider)]
        for lanes in await self.run_on("hasten", head, {shard: [] for shard in self.fences}):
            self.owe(lanes)
        if self.clock.steady() >= until:  # by then all nodes have seen it
            self._was_ahead = _NOT_AHEAD

    async def _recover_shard(self, number: int, settled: int, known: Sequence[Word]) -> None:
        left = 1
        while left and number in self.held:
            args = (self.ahead, self.held[number], _RECOVERED, settled, *known)
            try:
                left, *lanes = await self.run("recover", [self.names.shards[number]], *args)
            except FencedError:
                return
            self.owe(lanes)

    async def close(self) -> None:
        """Give all back. Raises StoreError, StoreCorruptError."""
        await self.live(0)
        await self._set_clock(0.0)
        if self.held:
            await self.run_on("give", [self.ahead], {shard: [fence] for shard, fence in self.fences.items()})
        await publish(self.database, self.names, b"k", NODES)
        self.held.clear()

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


async def publish(database: Database, names: Names, *fields: Word) -> None:
    """All nodes, through the stream of changes."""
    await database.run(Call(_PUBLISH, [names.changes], (_KEPT, *fields)))


def _heard_of(task: asyncio.Task[None]) -> None:
    """How it failed, whoever waited for it may be gone by then."""
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
