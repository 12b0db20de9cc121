"""Whose code is pushed to a device next, and how often: counted in the memory of this process."""

import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from hashlib import blake2b
from typing import Final, Protocol, TypeAlias, TypeVar

import msgspec

from ntf_server.admission.budgets import MAX_KEYS
from ntf_server.admission.code_turns import MAX_REPLACEMENTS, DeviceTurns, Turn, own_turn
from ntf_server.store.records import Ref

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

PutOff: TypeAlias = Callable[[Mapping[Ref, float | None]], Awaitable[None]]  # `Store.put_off`

MAX_DEVICES: Final = 100_000  # some 60 MiB
TURN_ID: Final = 8  # bytes
_TURNS_EACH: Final = 2  # that wait at a device, on average, before the device of which nothing came for longest goes


class Asked(msgspec.Struct, frozen=True):
    """What came of asking for a turn: seconds to wait for it; None as `turn`: nobody else is concerned."""

    wait: float
    device: bytes = b""
    turn: Turn | None = None


class Codes(Protocol):
    """Turns of codes: of this process, or of all nodes that share a store. Those of all raise StoreError.

    A device, a source and a network are whatever stands for them.
    """

    async def ask(self, device: bytes, source: bytes, network: bytes, ref: Ref | None) -> Asked | None:
        """See `DeviceTurns.ask`. Whoever waits at another device waits there no longer."""
        ...

    async def made(self, asked: Asked, ref: Ref, put_off: PutOff) -> None:
        """It is registered, or replaced. The store is told of others, whose turns have moved."""
        ...

    async def again(self, ref: Ref) -> float:
        """Seconds until an ACTIVE registration's own code may be pushed to it."""
        ...

    async def replace(self, ref: Ref, *, verified: bool) -> bool:
        """Whether a registration may have another device token: so often until it is verified."""
        ...

    async def verified(self, ref: Ref) -> None:
        """It is: it waits nowhere, and may be replaced again."""
        ...


class Verifications:
    """Turns of all devices: of the newest `MAX_DEVICES` that something was registered for.

    To have a device forgotten within its hour, somebody would have to register that many others: at the default budget
    of all registrations together that takes half an hour, in which he wins three pushes.
    """

    def __init__(self, size: int = MAX_DEVICES) -> None:
        self._size = size
        self._devices: OrderedDict[Hashable, DeviceTurns] = OrderedDict()
        self._where: dict[Ref, Hashable] = {}  # device at which a known registration waits

    def __len__(self) -> int:
        return len(self._devices)

    def ask(self, device: Hashable, source: bytes, network: bytes, ref: Ref | None, now: float) -> Turn | None:
        """See `DeviceTurns.ask`."""
        self.forget(ref, unless=device)
        turns = self._devices.setdefault(device, DeviceTurns())
        self._devices.move_to_end(device)
        before = turns.refs
        turn = turns.ask(os.urandom(TURN_ID), source, network, ref, now)
        self._changed(device, before, turns.refs)
        while len(self._devices) > 1 and self._is_full:
            _, gone = self._devices.popitem(last=False)
            for waiting in gone.refs:
                self._where.pop(waiting, None)
        return turn

    @property
    def _is_full(self) -> bool:
        return len(self._devices) > self._size or len(self._where) > _TURNS_EACH * self._size

    def made(self, device: Hashable, turn: Turn, ref: Ref) -> None:
        """The registration that a turn is for."""
        if (turns := self._devices.get(device)) is not None:
            turns.made(turn, ref)
            self._changed(device, (), turns.refs)

    def moved(self, device: Hashable, now: float) -> Mapping[Ref, float | None]:
        """What the store has to be told of others at a device: in how many seconds their turn is, None: they lost it.

        Each is told once.
        """
        if (turns := self._devices.get(device)) is None:
            return {}
        if not (untold := turns.untold()):
            return {}
        turns.tell(untold)
        return {ref: None if at is None else at - now for ref, at in untold.items()}

    def forget(self, ref: Ref | None, unless: Hashable = None) -> None:
        """A registration waits no longer, but at that device."""
        device = self._where.get(ref)
        if ref is None or device is None or device == unless:
            return
        del self._where[ref]
        if (turns := self._devices.get(device)) is not None:
            turns.forget(ref)

    def _changed(self, device: Hashable, before: Collection[Ref], refs: Collection[Ref]) -> None:
        """Who waited there, and who does now."""
        for ref in before:
            if ref not in refs:
                self._where.pop(ref, None)
        for ref in refs:
            self._where[ref] = device


class LocalCodes:
    """`Codes` of a process that has its store alone. `clock`: seconds that nobody sets."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._turns = Verifications()
        self._again: OrderedDict[Ref, float] = OrderedDict()  # when an ACTIVE token may have its code pushed again
        self._replaced: OrderedDict[Ref, int] = OrderedDict()  # times since a token was verified
        self._salt = os.urandom(16)

    async def ask(self, device: bytes, source: bytes, network: bytes, ref: Ref | None) -> Asked | None:
        """See `Codes`."""
        now, key = self._clock(), blake2b(device, key=self._salt, digest_size=16).digest()
        turn = self._turns.ask(key, source, network, ref, now)
        return None if turn is None else Asked(turn.at - now, key, turn)

    async def made(self, asked: Asked, ref: Ref, put_off: PutOff) -> None:
        """See `Codes`."""
        if asked.turn is None:
            return
        self._turns.made(asked.device, asked.turn, ref)
        if moved := self._turns.moved(asked.device, self._clock()):
            await put_off(moved)

    async def again(self, ref: Ref) -> float:
        """See `Codes`."""
        now = self._clock()
        at, then = own_turn(self._again.get(ref, now), now)
        remember(self._again, ref, then)
        return at - now

    async def replace(self, ref: Ref, *, verified: bool) -> bool:
        """See `Codes`."""
        count = 0 if verified else self._replaced.get(ref, 0) + 1
        if count > MAX_REPLACEMENTS:
            return False
        remember(self._replaced, ref, count)
        return True

    async def verified(self, ref: Ref) -> None:
        """See `Codes`."""
        self._replaced.pop(ref, None)
        self._turns.forget(ref)


def remember(kept: OrderedDict[K, V], key: K, value: V) -> None:
    """The newest MAX_KEYS of them."""
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > MAX_KEYS:
        kept.popitem(last=False)
