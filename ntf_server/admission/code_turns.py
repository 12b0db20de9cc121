"""Turns of codes at one device, and of one registration. No I/O.

Anybody may register anybody's device token, and every registration has a code pushed to it. So a device gets at most
one such push a minute and three an hour. What is over that waits for its turn, and turns rotate over *networks*, and in
each over *sources*, which are addresses, or registrations that were ACTIVE once: who had fewer turns within the hour
goes first. A source has one registration waiting at a device; its next one takes the place of that. So whoever floods a
device, from however many addresses of one network, delays others there by a turn, and replaces only what is his own.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

import msgspec

SPACING: Final = 60.0  # seconds between two pushes to a device, or of its own code to an ACTIVE registration
HOUR: Final = 3600.0
PER_HOUR: Final = 3
MAX_OF_NETWORK: Final = 32  # sources of one network that wait at a device; more are refused
MAX_WAITING: Final = 256  # sources of all networks
MAX_REPLACEMENTS: Final = 2  # of a token that is not verified


class Turn(NamedTuple):
    """When a registration's code may be pushed, as it is told to who asked; others may have it later by and by.

    `is_known`: it is that of a registration which was there before.
    """

    turn_id: bytes
    at: float
    is_known: bool


class Place(msgspec.Struct, array_like=True, eq=False):
    """A turn, as a device has it. `at`: when it is; `told`: when the store was told that it is.

    `ref`: the registration, once it is known.
    """

    turn_id: bytes
    source: bytes
    network: bytes
    at: float
    told: float
    ref: Any = None


class Packed(msgspec.Struct, array_like=True):
    """What nodes that share a store keep there."""

    @classmethod
    def unpack(cls, packed: bytes | None) -> Self:
        """None, and what cannot be read: nothing is known."""
        try:
            return cls() if packed is None else msgspec.msgpack.decode(packed, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return cls()

    def pack(self) -> bytes:
        """For `unpack`."""
        return msgspec.msgpack.encode(self)


class DeviceTurns(Packed, eq=False):
    """Of one device. `given`: within the last hour, oldest first; `waiting`: in the order of their turns; `lost`:
    registrations that lost theirs, which the store was not told yet. Refs that are bytes can be packed.
    """

    given: list[Place] = []
    waiting: list[Place] = []
    lost: list[Any] = []

    def keep(self, now: float) -> float:
        """Seconds after which there is nothing to know of it; 0: there is nothing now."""
        if last := (self.waiting or self.given)[-1:]:
            return last[0].at + HOUR - now
        return HOUR if self.lost else 0.0

    def ask(self, turn_id: bytes, source: bytes, network: bytes, ref: Any, now: float) -> Turn | None:
        """A turn for a registration; None: too many wait. `ref`: which one it is, if there was one before.

        Turns of others may have moved: see `untold`. No other turn has this id.
        """
        self._settle(now)
        if ref is not None:
            self.lost = [lost for lost in self.lost if lost != ref]
            if (mine := next((place for place in self.waiting if place.ref == ref), None)) is not None:
                return Turn(mine.turn_id, mine.at, is_known=True)
        place = Place(turn_id, source, network, now, now, ref)
        if (earlier := next((p for p in self.waiting if p.source == source), None)) is not None:
            self.waiting[self.waiting.index(earlier)] = place
            if earlier.ref is not None:
                self._lose(earlier.ref)
        elif len(self.waiting) < MAX_WAITING and sum(p.network == network for p in self.waiting) < MAX_OF_NETWORK:
            self.waiting.append(place)
        else:
            return None
        self._arrange(now)
        place.told = place.at
        self._settle(now)
        return Turn(turn_id, place.at, is_known=ref is not None)

    def made(self, turn: Turn, ref: Any) -> None:
        """The registration that a turn is for: the store has its code pushed at `turn.at`."""
        place = next((place for place in self.waiting if place.turn_id == turn.turn_id), None)
        if place is not None:
            place.ref, place.told = ref, turn.at
        elif not turn.is_known and all(place.turn_id != turn.turn_id for place in self.given):
            self._lose(ref)  # another one of its source has the turn now

    def untold(self) -> dict[Any, float | None]:
        """What the store has to be told of others: when their turns are; None: they lost them."""
        out: dict[Any, float | None] = dict.fromkeys(self.lost)
        out.update((p.ref, p.at) for p in self.waiting if p.ref is not None and p.at != p.told)
        return out

    def tell(self, told: Mapping[Any, float | None]) -> None:
        """The store was told that: what has changed since is untold still."""
        self.lost = [ref for ref in self.lost if told.get(ref, 0.0) is not None]
        for place in self.waiting:
            if (at := told.get(place.ref)) is not None:
                place.told = at

    def forget(self, ref: Any) -> None:
        """It waits no longer."""
        self.waiting = [place for place in self.waiting if place.ref != ref]
        self.lost = [lost for lost in self.lost if lost != ref]

    @property
    def refs(self) -> set[Any]:
        """Registrations that wait."""
        return {place.ref for place in self.waiting if place.ref is not None}

    def _lose(self, ref: Any) -> None:
        self.lost = [*self.lost, ref][-MAX_WAITING:]

    def _settle(self, now: float) -> None:
        """Turns that have come were given."""
        while self.waiting and self.waiting[0].at <= now:
            self.given.append(self.waiting.pop(0))
        self.given = [place for place in self.given if place.at > now - HOUR]

    def _arrange(self, now: float) -> None:
        """Give them their times."""
        if len(self.waiting) > 1:
            self._rank()
        times = [place.at for place in self.given]
        for place in self.waiting:
            earliest = max(now, times[-1] + SPACING) if times else now
            if len(times) >= PER_HOUR:
                earliest = max(earliest, times[-PER_HOUR] + HOUR)
            place.at = earliest
            times.append(earliest)

    def _rank(self) -> None:
        """Fewest turns of a network first, and of a source in it, then as they came."""
        of_source = Counter(place.source for place in self.given)
        of_network = Counter(place.network for place in self.given)
        ranks: dict[bytes, int] = {}
        for place in sorted(self.waiting, key=lambda place: of_source[place.source]):
            ranks[place.turn_id] = of_network[place.network]
            of_network[place.network] += 1
        self.waiting.sort(key=lambda place: (ranks[place.turn_id], of_source[place.source]))


def own_turn(again: float, now: float) -> tuple[float, float]:
    """Of an ACTIVE registration, whose code may be pushed again at `again`: when it is pushed, and when then."""
    at = max(now, again)
    return at, at + SPACING if at == now else at
