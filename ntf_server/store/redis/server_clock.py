"""The store's time: the server's TIME, which is the only clock, and what is added to it.

That is changed by as much as somebody sets the server's clock, once, whichever node sees it first: so the store's time
goes on evenly. In a cluster the server is the one that has the slot of what is everybody's.
"""

from typing import Final

from ntf_server.store.clock import Clock
from ntf_server.store.memory import State
from ntf_server.store.redis.call import Call, Word
from ntf_server.store.redis.database import Database
from ntf_server.store.redis.names import Names
from ntf_server.store.redis.script import Script

_CLOCK: Final = Script.load("clock")
_STEP: Final = 2.0  # seconds that two clocks may go apart between two looks
_NOT_AHEAD: Final = 0.0, 0.0


class ServerClock:
    """`manual`: the clock is a test's; else the server's is the only one. `matters`: seconds after a step in which
    other nodes may not have seen it.
    """

    def __init__(self, database: Database, names: Names, state: State, *, manual: bool, matters: float) -> None:
        self._database = database
        self._names = names
        self._state = state
        self._manual = manual
        self._matters = matters
        self._offset = 0  # ms, of the store's clock
        self._version = b"0"
        self._server: tuple[float, float] | None = None  # the server's clock and ours, when it was heard last
        self._heard_late = False  # that may be seconds wrong
        self._was_ahead = _NOT_AHEAD  # by how many seconds the server's clock was set, until when that matters

    @property
    def own(self) -> Clock:
        """Its steady half counts everywhere; its wall half only where it is a test's."""
        return self._state.clock

    @property
    def ahead(self) -> Word:
        """What scripts add to the server's time, in ms; or a test's time (see `now_ms` of the prelude)."""
        return f"={self._manual_ms() + self._offset}" if self._manual else self._offset

    def _manual_ms(self) -> int:
        return round(self.own.wall() * 1000)

    @property
    def shift(self) -> int:
        """Seconds that the store's clock is ahead of what people see."""
        return round(self._offset / 1000)

    def wall(self) -> float:
        """Unix seconds, as people see them."""
        if self._manual or self._server is None:
            return self.own.wall()
        server, steady = self._server
        return server + self.own.steady() - steady

    def now(self) -> float:
        """The store's time, in seconds."""
        return self.wall() + self._offset / 1000

    @property
    def last(self) -> int:
        """The store's time in ms, if that is known; else 0."""
        return round(self.now() * 1000) if self._manual or self._server else 0

    def _heard(self, server: float, *, late: bool) -> float:
        """By how many seconds the server's clock was set since it was heard last, and not late."""
        steady = self.own.steady()
        before, self._server = None if self._heard_late else self._server, (server, steady)
        self._heard_late = late
        return 0.0 if before is None else (server - before[0]) - (steady - before[1])

    async def begin(self, run: bytes) -> int:
        """The node starts; `run` tells that from all other starts. By how many seconds it is later than when a node ran
        last.
        """
        gap = await self.set(self.own.read().step if self._manual else 0.0, run)
        if self._manual:
            self.own.settle()
        return gap

    async def look(self) -> None:
        """Before each operation, whether a test has set its clock."""
        if not self._manual:
            return
        if step := self.own.read().step:
            await self.set(step)
        self.own.settle()

    async def look_at_server(self) -> None:
        """Before its time is used: leases must not end because it was set. A late answer tells nothing of that;
        its time counts where none is known, since this machine's clock may be anywhere.
        """
        if self._manual:
            return
        began = self.own.steady()
        key = self._names.clock
        seconds, micros = await self._database.command(b"TIME", key=key, writes=False)
        late = self.own.steady() - began >= _STEP / 2
        if late and self._server is not None:
            return
        if abs(step := self._heard(int(seconds) + int(micros) / 1e6, late=late)) > _STEP:
            await self.set(step)
            if step > 0:
                self._was_ahead = step, self.own.steady() + self._matters

    async def set(self, step: float, run: bytes = b"") -> int:
        """It was set by so many seconds. Gives what `begin` gives."""
        begin = f"={self._manual_ms()}" if self._manual else 0
        args = (begin, self._version, round(step * 1000), run)
        offset, self._version, gap = await self._database.run(Call(_CLOCK, [self._names.clock], args))
        self._offset = int(offset)
        if step:
            self._state.effects.stepped = step
        return int(gap)

    @property
    def was_ahead(self) -> float:
        """By how many seconds the server's clock was set forward, while other nodes may not know; else 0."""
        return self._was_ahead[0]

    def settle(self) -> None:
        """What came of that was looked at."""
        if self.own.steady() >= self._was_ahead[1]:  # by then all nodes have seen it
            self._was_ahead = _NOT_AHEAD
