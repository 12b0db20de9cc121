"""Whose code is pushed to a device next.

Anybody may register anybody's device token, and every registration has a code pushed to it. So a device gets at most
one such push a minute and three an hour. What is over that waits for its turn, and turns rotate over *networks*, and in
each over *sources*, which are addresses, or registrations that were ACTIVE once: who had fewer turns within the hour
goes first. A source has one registration waiting at a device; its next one takes the place of that. So whoever floods a
device, from however many addresses of one network, delays others there by a turn, and replaces only what is his own.
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ntf_server.store.records import Ref

SPACING: Final = 60.0  # seconds between two pushes to a device
HOUR: Final = 3600.0
PER_HOUR: Final = 3
MAX_OF_NETWORK: Final = 32  # sources of one network that wait at a device; more are refused
MAX_WAITING: Final = 256  # sources of all networks
MAX_DEVICES: Final = 100_000  # some 60 MiB
_TURNS_EACH: Final = 2  # that wait at a device, on average, before the device of which nothing came for longest goes


@dataclass(eq=False, slots=True)
class Turn:
    """When a registration's code may be pushed: `at`; `told`: when the store was told that it may.

    `ref`: the registration, once it is known; `is_lost`: another one of its source has the turn now.
    """

    source: Hashable
    network: Hashable
    at: float
    told: float
    ref: Ref | None = None
    is_lost: bool = False


@dataclass(slots=True)
class _Device:
    given: list[Turn] = field(default_factory=list)  # within the last hour, oldest first
    waiting: list[Turn] = field(default_factory=list)  # in the order of their turns
    lost: list[Ref] = field(default_factory=list)  # registrations that lost theirs, which the store was not told yet


class Verifications:
    """Turns of all devices: of the newest `MAX_DEVICES` that something was registered for.

    To have a device forgotten within its hour, somebody would have to register that many others: at the default budget
    of all registrations together that takes half an hour, in which he wins three pushes.
    """

    def __init__(self, size: int = MAX_DEVICES) -> None:
        self._size = size
        self._devices: OrderedDict[Hashable, _Device] = OrderedDict()
        self._where: dict[Ref, Hashable] = {}  # device at which a known registration waits

    def __len__(self) -> int:
        return len(self._devices)

    def ask(self, device: Hashable, source: Hashable, network: Hashable, ref: Ref | None, now: float) -> Turn | None:
        """A turn for a registration; None: too many wait. `ref`: which one it is, if there was one before.

        Turns of others may have moved: see `moved`.
        """
        self.forget(ref, unless=device)
        at = self._devices.setdefault(device, _Device())
        self._devices.move_to_end(device)
        self._settle(at, now)
        if ref is not None and (mine := next((t for t in at.waiting if t.ref == ref), None)) is not None:
            return mine
        turn = Turn(source, network, now, now, ref)
        if (earlier := next((t for t in at.waiting if t.source == source), None)) is not None:
            at.waiting[at.waiting.index(earlier)] = turn
            self._lose(at, earlier)
        elif len(at.waiting) < MAX_WAITING and sum(t.network == network for t in at.waiting) < MAX_OF_NETWORK:
            at.waiting.append(turn)
        else:
            return None
        if ref is not None:
            self._where[ref] = device
        self._arrange(at, now)
        turn.told = turn.at
        self._settle(at, now)
        while len(self._devices) > 1 and self._is_full:
            _, gone = self._devices.popitem(last=False)
            for waiting in gone.waiting:
                self._where.pop(waiting.ref, None)
        return turn

    @property
    def _is_full(self) -> bool:
        return len(self._devices) > self._size or len(self._where) > _TURNS_EACH * self._size

    def made(self, device: Hashable, turn: Turn, ref: Ref) -> None:
        """The registration that a turn is for."""
        turn.ref = ref
        at = self._devices.get(device)
        if at is not None and turn.is_lost:
            self._lose(at, turn)
        elif at is not None and turn in at.waiting:
            self._where[ref] = device

    def moved(self, device: Hashable, now: float) -> Mapping[Ref, float | None]:
        """What the store has to be told of others at a device: in how many seconds their turn is, None: they lost it.

        Each is told once.
        """
        at = self._devices.get(device)
        if at is None:
            return {}
        out: dict[Ref, float | None] = dict.fromkeys(at.lost)
        at.lost.clear()
        for turn in at.waiting:
            if turn.ref is not None and turn.at != turn.told:
                turn.told = turn.at
                out[turn.ref] = turn.at - now
        return out

    def forget(self, ref: Ref | None, unless: Hashable = None) -> None:
        """A registration waits no longer, but at that device."""
        device = self._where.get(ref)
        if ref is None or device is None or device == unless:
            return
        del self._where[ref]
        at = self._devices.get(device)
        if at is not None:
            at.waiting = [t for t in at.waiting if t.ref != ref]

    def _lose(self, at: _Device, turn: Turn) -> None:
        turn.is_lost = True
        if turn.ref is not None:
            self._where.pop(turn.ref, None)
            at.lost.append(turn.ref)

    def _settle(self, at: _Device, now: float) -> None:
        """Turns that have come were given."""
        while at.waiting and at.waiting[0].at <= now:
            turn = at.waiting.pop(0)
            at.given.append(turn)
            self._where.pop(turn.ref, None)
        at.given = [turn for turn in at.given if turn.at > now - HOUR]

    @staticmethod
    def _arrange(at: _Device, now: float) -> None:
        """Fewest turns of a network first, and of a source in it, then as they came; then give them their times."""
        of_source = Counter(turn.source for turn in at.given)
        of_network = Counter(turn.network for turn in at.given)
        ranks: dict[Turn, int] = {}
        for turn in sorted(at.waiting, key=lambda turn: of_source[turn.source]):
            ranks[turn] = of_network[turn.network]
            of_network[turn.network] += 1
        at.waiting.sort(key=lambda turn: (ranks[turn], of_source[turn.source]))
        times = [turn.at for turn in at.given]
        for turn in at.waiting:
            earliest = max(now, times[-1] + SPACING) if times else now
            if len(times) >= PER_HOUR:
                earliest = max(earliest, times[-PER_HOUR] + HOUR)
            turn.at = earliest
            times.append(earliest)
