"""Redis servers in virtual time: one process each, with its connections; what they do when they are not well."""

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from sim.loop import VirtualLoop
from sim.valkey.data import Data
from sim.valkey.keyspace import ReplyError
from sim.valkey.network import Link
from sim.valkey.wire import Commands, packed

_TROUBLES: Final = {
    "loading": "LOADING Redis is loading the dataset in memory",
    "busy": "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "misconf": "MISCONF Errors writing to the AOF file: No space left on device",
    "noreplicas": "NOREPLICAS Not enough good replicas to write.",
}
_UNBLOCKED: Final = "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"
_HALF: Final = ("ASK ", "TRYAGAIN ")  # who waits for a slot that is half elsewhere goes on
_ALWAYS: Final = frozenset([b"INFO", b"PING"])  # are answered while it loads


class Server:
    """One process. `trouble`: one of those above, or empty; `frozen`: it stands still, and its connections with it."""

    def __init__(self, name: str, loop: VirtualLoop, rng: Random, data: Data) -> None:
        self.name = name
        self.loop = loop
        self.rng = rng
        self.data = data
        self.listening = True
        self.frozen = False
        self.trouble = ""
        self.sync: Callable[[], int] = lambda: 0  # to have replicas in step: how many are
        self.on_script: Callable[[str, Link], None] | None = None  # told of each that it has run, and for whom
        self._sessions: list[_Session] = []

    def __str__(self) -> str:
        return self.name

    def accept(self, link: Link) -> "_Session":
        """See `Listener`."""
        session = _Session(self, link)
        self._sessions.append(session)
        return session

    def forget(self, session: "_Session") -> None:
        """Its connection is over."""
        if session in self._sessions:
            self._sessions.remove(session)

    def freeze(self) -> None:
        """SIGSTOP."""
        self.frozen = True

    def thaw(self) -> None:
        """SIGCONT: what came meanwhile is done now."""
        self.frozen = False
        for session in list(self._sessions):
            session.work()

    def wake(self) -> None:
        """Something was written: who waits for it looks."""
        for session in list(self._sessions):
            session.look()

    def unblock(self) -> None:
        """It is a primary no more."""
        for session in list(self._sessions):
            session.unblock(ReplyError(_UNBLOCKED))

    def answer(self, words: Sequence[bytes], *, asking: bool = False) -> Any:
        """A reply; a ReplyError is one too. `asking`: behind ASKING."""
        if self.trouble and words[0].upper() not in _ALWAYS:
            return ReplyError(_TROUBLES[self.trouble])
        if words[0].upper() == b"WAIT":
            return self.sync()
        try:
            return self.data.answer(words)
        except ReplyError as e:
            return e


class _Session:
    """A connection's end at a server."""

    def __init__(self, server: Server, link: Link) -> None:
        self._server = server
        self._link = link
        self._commands = Commands()
        self._waiting: deque[list[bytes]] = deque()
        self._blocked: list[bytes] | None = None
        self._asking = False
        self._closed = False

    def receive(self, data: bytes) -> None:
        """See `network.Session`."""
        if not self._closed:
            self._waiting += self._commands.feed(data)
            self.work()

    def over(self) -> None:
        """See `network.Session`."""
        self._closed = True
        self._server.forget(self)

    def work(self) -> None:
        """Do what there is to do, and answer it in one piece."""
        if self._server.frozen:
            return
        out = bytearray()
        while self._waiting and self._blocked is None:
            words = self._waiting.popleft()
            answer = self._server.answer(words, asking=self._asking)
            self._asking = words == [b"ASKING"]
            if self._server.on_script is not None and self._server.data.ran:
                self._server.on_script(self._server.data.ran, self._link)
            if answer is None and b"BLOCK" in words:
                self._block(words)
            else:
                out += packed(answer)
        if out:
            self._link.deliver(bytes(out))

    def _block(self, words: list[bytes]) -> None:
        self._blocked = words
        wait = int(words[words.index(b"BLOCK") + 1]) / 1000
        self._server.loop.in_world(wait, self._late, words)

    def _late(self, words: list[bytes]) -> None:
        if self._blocked is words:
            self.unblock(None)

    def look(self) -> None:
        """At what it waits for."""
        if self._blocked is None:
            return
        answer = self._server.answer(self._blocked)
        if answer is not None and not (isinstance(answer, ReplyError) and str(answer).startswith(_HALF)):
            self.unblock(answer)

    def unblock(self, answer: Any) -> None:
        """It has waited long enough."""
        if self._blocked is not None and not self._closed:
            self._blocked = None
            self._link.deliver(packed(answer))
            self.work()
