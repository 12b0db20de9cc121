"""What goes on beside a transaction of the SQLite store: its time, and the engine's memory."""

import sqlite3
from collections.abc import Callable
from functools import partial

from ntf_server.store.memory import Effects, State
from ntf_server.store.sqlite import due
from ntf_server.store.sqlite.database import After


class Turn:
    """Implements `database.Turns`. `apply`: what a transaction that is durable brought with it is given to it."""

    def __init__(self, state: State, apply: Callable[[Effects], None]) -> None:
        self._state = state
        self._apply = apply

    def begin(self, c: sqlite3.Connection) -> None:
        """See `Turns`."""
        s = self._state
        now, step = s.clock.read()
        s.now, s.now_ms, s.steady = int(now), int(now * 1000), s.clock.steady()
        if step:
            due.shift(c, s, round(step))
            due.remember_clock(c, s)
            s.effects.stepped = step
            s.stepped(step)

    def commit(self) -> After | None:
        """See `Turns`."""
        s = self._state
        s.journal.forget()
        s.clock.settle()
        s.crowd()
        if not s.effects:
            return None
        effects, s.effects = s.effects, Effects()
        return partial(self._apply, effects)

    def rollback(self) -> None:
        """See `Turns`."""
        s = self._state
        s.journal.undo()
        s.arrived = 0
        s.addresses.clear()
        if s.effects.stepped:
            s.steps.pop()
        s.effects = Effects()
