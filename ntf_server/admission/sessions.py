"""Connections of clients: how many are open, by address and in all, and which one goes when there are too many.

A connection is half-open until its handshake, TLS and all, is done; then it is a session. Over a budget the oldest
half-open connection, one that did not even begin its handshake first, or the session that was silent longest, makes
room: an honest client needs a session only while it asks, and its handshake takes a moment. So a stranger who holds all
that his address may have keeps nobody out who shares it with him. Everything here is exact, and as large as what is
open.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ntf_server.admission.addresses import Key, share, text
from ntf_server.admission.budgets import Budgets, Paid

SILENT: Final = 0.5  # seconds that an honest client may say nothing before it makes room for others of its address
HANDSHAKE: Final = 3.0  # seconds that its handshake may take
MANY: Final = 100  # sessions, before it is told that one address holds most of them
_ALL: Final = b""  # key of what all have together


class Closed(StrEnum):
    """Why a connection is closed. HALF_OPEN and SESSIONS: in all."""

    HALF_OPEN_PER_ADDRESS = "half_open_per_address"
    HALF_OPEN = "half_open"
    SESSIONS_PER_ADDRESS = "sessions_per_address"
    SESSIONS = "sessions"


@dataclass(eq=False, slots=True)
class Peer:
    """A client's connection. `keys`: what its address is charged to; `since`: it came, could begin, or asked."""

    keys: tuple[Key, ...]
    close: Callable[[], None]
    since: float
    paid: Paid = ()  # of its own commands
    is_shaking: bool = False
    is_session: bool = False
    is_gone: bool = False
    _mark: bytes = b""

    @property
    def mark(self) -> bytes:
        """What it is known by where it has no address, on all nodes."""
        self._mark = self._mark or os.urandom(16)
        return self._mark


@dataclass(slots=True)
class _Open:
    """Connections of one kind by key, each list in the order of `since`."""

    by_key: dict[Key, dict[Peer, None]] = field(default_factory=dict)

    def add(self, peer: Peer) -> None:
        for key in (_ALL, *peer.keys):
            self.by_key.setdefault(key, {})[peer] = None

    def remove(self, peer: Peer) -> None:
        for key in (_ALL, *peer.keys):
            peers = self.by_key.get(key)
            if peers is not None and peer in peers:
                del peers[peer]
                if not peers:
                    del self.by_key[key]

    def count(self, key: Key = _ALL) -> int:
        return len(self.by_key.get(key, ()))

    def first(self, key: Key) -> Peer:
        return next(iter(self.by_key[key]))


class Connections:
    """All that are open. `on_closed`: told of each that is closed or refused."""

    def __init__(self, on_closed: Callable[[Closed], None]) -> None:
        self._silent = _Open()  # that said too little to begin a handshake
        self._shaking = _Open()  # that wait for their handshake, or are in it
        self._sessions = _Open()
        self._on_closed = on_closed

    def open(
        self, keys: tuple[Key, ...], close: Callable[[], None], now: float, budgets: Budgets | None
    ) -> Peer | None:
        """A connection that was accepted; None: it is to be closed at once, before anything is spent on it."""
        if budgets is not None and not self._has_room(keys, now, budgets):
            return None
        peer = Peer(keys, close, now)
        self._silent.add(peer)
        return peer

    def shaking(self, peer: Peer, since: float) -> None:
        """It said what its handshake begins with, and may have it from then on."""
        if not peer.is_gone:
            self._silent.remove(peer)
            peer.is_shaking, peer.since = True, since
            self._shaking.add(peer)

    def established(self, peer: Peer, now: float, budgets: Budgets | None) -> None:
        """Its handshake is done: it is a session. One that was silent for longer may be closed for it."""
        if peer.is_gone:  # its last block was read before it was lost, and understood afterwards
            return
        self._of(peer).remove(peer)
        if budgets is not None:
            for key in peer.keys:
                if self._sessions.count(key) >= budgets.sessions_per_address * share(key):
                    self._end(self._sessions, self._sessions.first(key), Closed.SESSIONS_PER_ADDRESS)
            if self._sessions.count() >= budgets.sessions:
                self._end(self._sessions, self._sessions.first(_ALL), Closed.SESSIONS)
        peer.is_session, peer.since = True, now
        self._sessions.add(peer)

    def asked(self, peer: Peer, now: float) -> None:
        """Something came in its session."""
        if peer.is_session and not peer.is_gone:
            peer.since = now
            self._sessions.remove(peer)
            self._sessions.add(peer)

    def closed(self, peer: Peer) -> None:
        """It is gone. To be told once more does no harm."""
        peer.is_gone = True
        self._of(peer).remove(peer)

    def _of(self, peer: Peer) -> _Open:
        if peer.is_session:
            return self._sessions
        return self._shaking if peer.is_shaking else self._silent

    def end_half_open(self) -> None:
        """Close all whose handshake is not done: nobody is served any more."""
        for kind in (self._silent, self._shaking):
            for peer in list(kind.by_key.get(_ALL, ())):
                peer.close()

    @property
    def sessions(self) -> int:
        """How many there are."""
        return self._sessions.count()

    @property
    def half_open(self) -> int:
        """How many connections have not done their handshake yet."""
        return self._half_open()

    def _half_open(self, key: Key = _ALL) -> int:
        return self._silent.count(key) + self._shaking.count(key)

    def majority(self, peer: Peer) -> tuple[str, int] | None:
        """The address of this session, for people, and how many it has: if these are over half of many."""
        for key in peer.keys:
            count = self._sessions.count(key)
            if count >= MANY and 2 * count > self._sessions.count():
                return text(key), count
        return None

    def _has_room(self, keys: tuple[Key, ...], now: float, budgets: Budgets) -> bool:
        for key in keys:
            limit = budgets.half_open_per_address * share(key)
            if not self._make_room(key, limit, now):
                return False
        # No pause here: strangers with many addresses, who come again at once, would leave no room to others. And there
        # is so much in all that who is served in the order of arrival is done before he is the oldest.
        if self._half_open() >= budgets.half_open:
            kind = self._silent if self._silent.count() else self._shaking
            self._end(kind, kind.first(_ALL), Closed.HALF_OPEN)
        return True

    def _make_room(self, key: Key, limit: int, now: float) -> bool:
        """Whether an address has room for one more; what was half-open for too long is closed for it.

        Not what is younger: of a crowd behind one address nobody would come to the end of his handshake.
        """
        if self._half_open(key) < limit:
            return True
        for kind, seconds in ((self._silent, SILENT), (self._shaking, HANDSHAKE)):
            if kind.count(key) and now - (oldest := kind.first(key)).since >= seconds:
                self._end(kind, oldest, Closed.HALF_OPEN_PER_ADDRESS)
                return True
        self._on_closed(Closed.HALF_OPEN_PER_ADDRESS)
        return False

    def _end(self, opened: _Open, peer: Peer, why: Closed) -> None:
        opened.remove(peer)
        peer.is_gone = True
        self._on_closed(why)
        peer.close()
