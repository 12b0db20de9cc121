"""Whose code is pushed to a device next, and how often: counted by all nodes that share a store."""

import os
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from ntf_server.admission.code_turns import HOUR, MAX_REPLACEMENTS, DeviceTurns, Packed, Turn, own_turn
from ntf_server.admission.verifications import TURN_ID, Asked, PutOff
from ntf_server.store.ledger import Ledger, Revision
from ntf_server.store.records import Ref

_DAY: Final = 24 * HOUR  # after its last TNEW or TRPL a registration that never was ACTIVE is deleted
_SHORT: Final = 8  # bytes of what stands for a source or a network, of which a device has a few hundred
_ROUNDS: Final = 10  # in which others may move turns while the store is told of them


class Memo(Packed):
    """Of a registration. `again`: when it may have its own code pushed again, in the store's seconds; `replaced`: times
    since it was verified; `device`: what stands for the device at which it waits.
    """

    again: float = 0.0
    replaced: int = 0
    device: bytes = b""

    def keep(self, now: float) -> float:
        """As `DeviceTurns.keep`."""
        return _DAY if self.replaced or self.device else max(0.0, self.again - now)


class _Told(NamedTuple):
    """What the store has to be told, at a time; whether a registration waits."""

    untold: dict[Any, float | None]
    now: float
    waits: bool = False


class SharedCodes:
    """`Codes` of all nodes. Refs are bytes.

    What is told of turns that moved is confirmed afterwards: so nothing stays untold because a node died, and what two
    nodes told at once, in whatever order, is told once more as it is.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def ask(self, device: bytes, source: bytes, network: bytes, ref: Ref | None) -> Asked | None:
        """See `Codes`."""
        mask = self._ledger.mask
        key = mask(b"device" + device)
        if ref is not None:
            await self._leave(ref, unless=key)
        who = os.urandom(TURN_ID), mask(b"source" + source)[:_SHORT], mask(b"network" + network)[:_SHORT]

        def change(value: bytes | None, now: float) -> Revision[Asked | None]:
            turns = DeviceTurns.unpack(value)
            turn = turns.ask(*who, ref, now)
            if turn is None:
                return Revision(value, 0.0, None)
            # Where one is due at once nobody waits: it concerns nobody.
            concerns = turn.at > now or turns.untold()
            return _kept(turns, now, Asked(turn.at - now, key, turn if concerns else None))

        return await self._ledger.revise(key, change)

    async def made(self, asked: Asked, ref: Ref, put_off: PutOff) -> None:
        """See `Codes`."""
        if asked.turn is None:
            return
        told = await self._ledger.revise(asked.device, partial(_made, asked.turn, ref))
        if told.waits:
            await self._ledger.revise(self._registration(ref), partial(_waits_at, asked.device))
        for _ in range(_ROUNDS):
            if not told.untold:
                break
            await put_off({r: None if at is None else max(0.0, at - told.now) for r, at in told.untold.items()})
            told = await self._ledger.revise(asked.device, partial(_tell, told.untold))

    async def again(self, ref: Ref) -> float:
        """See `Codes`."""
        return await self._ledger.revise(self._registration(ref), _again)

    async def replace(self, ref: Ref, *, verified: bool) -> bool:
        """See `Codes`."""
        return await self._ledger.revise(self._registration(ref), partial(_replace, verified))

    async def verified(self, ref: Ref) -> None:
        """See `Codes`."""
        device = await self._ledger.revise(self._registration(ref), _verified)
        if device:
            await self._ledger.revise(device, partial(_forget, ref))

    async def _leave(self, ref: Ref, unless: bytes) -> None:
        device = await self._ledger.revise(self._registration(ref), _device)
        if device not in (b"", unless):
            await self._ledger.revise(device, partial(_forget, ref))

    def _registration(self, ref: Ref) -> bytes:
        assert isinstance(ref, bytes)
        return self._ledger.mask(b"registration" + ref)


# --- changes of a device's turns


def _kept(turns: DeviceTurns, now: float, result: Any) -> Revision[Any]:
    keep = turns.keep(now)
    return Revision(turns.pack() if keep > 0 else None, keep, result)


def _made(turn: Turn, ref: Ref, value: bytes | None, now: float) -> Revision[_Told]:
    turns = DeviceTurns.unpack(value)
    if not turns.given and not turns.waiting:  # it was emptied: nobody has another turn
        return Revision(value, 0.0, _Told({}, now))
    turns.made(turn, ref)
    return _kept(turns, now, _Told(turns.untold(), now, ref in turns.refs))


def _tell(told: dict[Any, float | None], value: bytes | None, now: float) -> Revision[_Told]:
    turns = DeviceTurns.unpack(value)
    turns.tell(told)
    return _kept(turns, now, _Told(turns.untold(), now))


def _forget(ref: Ref, value: bytes | None, now: float) -> Revision[None]:
    turns = DeviceTurns.unpack(value)
    turns.forget(ref)
    return _kept(turns, now, None)


# --- changes of what is known of a registration


def _remembered(memo: Memo, now: float, result: Any) -> Revision[Any]:
    keep = memo.keep(now)
    return Revision(memo.pack() if keep > 0 else None, keep, result)


def _device(value: bytes | None, now: float) -> Revision[bytes]:
    return Revision(value, 0.0, Memo.unpack(value).device)


def _waits_at(device: bytes, value: bytes | None, now: float) -> Revision[None]:
    return _remembered(msgspec.structs.replace(Memo.unpack(value), device=device), now, None)


def _again(value: bytes | None, now: float) -> Revision[float]:
    memo = Memo.unpack(value)
    at, then = own_turn(memo.again, now)
    return _remembered(msgspec.structs.replace(memo, again=then), now, at - now)


def _replace(verified: bool, value: bytes | None, now: float) -> Revision[bool]:
    memo = Memo.unpack(value)
    count = 0 if verified else memo.replaced + 1
    if count > MAX_REPLACEMENTS:
        return Revision(value, 0.0, False)
    return _remembered(msgspec.structs.replace(memo, replaced=count), now, True)


def _verified(value: bytes | None, now: float) -> Revision[bytes]:
    memo = Memo.unpack(value)
    return _remembered(Memo(memo.again), now, memo.device)
