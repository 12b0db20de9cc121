"""Subscriptions on SMP servers that are none, or none for long."""

import asyncio
import os
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from from_address import Connection
from ntf_load import Command, run
from smp_load import notifier_id

from attacks.base import CONNECTING, ONE_ADDRESS, Attack, Volley
from attacks.own_smp import OwnSmp, tarpit
from smp_bridge import ntf
from smp_bridge.address import ServerAddress

_POLL: Final = 0.1


class _Subscriptions(Attack):
    """One SNEW for each of its servers, all of one ACTIVE registration."""

    tokens: ClassVar[int] = 1
    descriptors: ClassVar[int] = ONE_ADDRESS + CONNECTING

    @abstractmethod
    async def servers(self) -> Sequence[ServerAddress]:
        """Where it subscribes."""

    async def prepare(self) -> None:
        """Sign."""
        [token] = self.plan.tokens[:1]
        version = ntf.VERSIONS[1]
        notifier = Ed25519PrivateKey.generate()
        commands = [
            Command(ntf.SNew(token.token_id, server, notifier_id(i), notifier).encode(version), b"", token.key)
            for i, server in enumerate(await self.servers())
        ]
        self._volley = Volley(self)
        await self._volley.load(commands)

    async def run(self) -> None:
        """Subscribe, and have the relay see to the rest."""
        await self._volley.fire()
        await self.subscribed()
        self.in_place.set()
        await asyncio.Event().wait()

    async def subscribed(self) -> None:
        """All SNEWs are answered."""


class TarpitServers(_Subscriptions):
    """K7, B1, WB1."""

    about = "one host that takes connections and says nothing, under 4,000 identities"

    async def servers(self) -> Sequence[ServerAddress]:
        """One port."""
        self._held: set[asyncio.BaseTransport] = set()
        port = str(await tarpit("127.0.66.1", self._held))
        count = self.plan.count(4000)
        return [ServerAddress("smp", ("127.0.66.1",), port, os.urandom(32)) for _ in range(count)]

    def figures(self) -> Mapping[str, float]:
        """With the connections that the relay has there now."""
        return {**super().figures(), "connections held": len(self._held)}


class RefusingPorts(_Subscriptions):
    """B1."""

    about = "3,000 ports that refuse"

    async def servers(self) -> Sequence[ServerAddress]:
        """Ports that nobody listens on."""
        ports = range(20_000, 20_000 + self.plan.count(3000))
        return [ServerAddress("smp", ("127.0.66.2",), str(port), os.urandom(32)) for port in ports]


class SilentNames(_Subscriptions):
    """B1: names whose name servers are silent."""

    about = "3,000 names of SMP servers that nobody answers for"

    async def servers(self) -> Sequence[ServerAddress]:
        """Names of the silent domain."""
        names = (f"smp{i}.{self.plan.silent}" for i in range(self.plan.count(3000)))
        return [ServerAddress("smp", (name,), "5223", os.urandom(32)) for name in names]


class ConfirmThenHang(_Subscriptions):
    """Who was proven once is not so for ever."""

    about = "a server that confirms under 1,000 names, drops all and hangs"
    settle: ClassVar[float] = 40.0

    async def servers(self) -> Sequence[ServerAddress]:
        """One server by many names."""
        count = self.plan.count(1000)
        self._smp = OwnSmp(count)
        await self._smp.listen(self.plan.evil_host)
        return [self._smp.address(f"smp{i}.{self.plan.evil}") for i in range(count)]

    async def subscribed(self) -> None:
        """Until all are confirmed, or no more are for a while; then all hang."""
        before, deadline = -1, time.monotonic() + 30
        while not self.plan.is_sink and (now := self._smp.stats()["nsubs"]) != before and time.monotonic() < deadline:
            before = now
            await asyncio.sleep(20 * _POLL)
        self.count("confirmed", max(0, before))
        self._smp.hangs = True
        self._smp.drop()

    def figures(self) -> Mapping[str, float]:
        """With the connections that hang now."""
        return {**super().figures(), "connections held": len(self._smp.held)}


class SpellingsOfOne(Attack):
    """B4, X1: SNEW and SDEL in turn, each time with another spelling of one host."""

    about = "SNEW and SDEL in turn, with spellings of one host"
    tokens: ClassVar[int] = 1
    descriptors: ClassVar[int] = ONE_ADDRESS + CONNECTING
    _sessions: ClassVar[int] = 4

    async def prepare(self) -> None:
        """Connect."""
        self._smp = OwnSmp(2**16)
        await self._smp.listen(self.plan.evil_host)
        self._connections = await self.sessions(self._sessions)

    async def run(self) -> None:
        """As fast as the relay lets him."""
        asyncio.get_running_loop().call_later(5, self.in_place.set)
        await asyncio.gather(*(self._churn(i) for i in range(len(self._connections))))

    async def _churn(self, first: int) -> None:
        connection = self._connections[first]
        [token] = self.plan.tokens[:1]
        version = connection[1].version
        notifier = Ed25519PrivateKey.generate()
        i = first
        while True:
            server = self._smp.address(_spelling(f"churn.{self.plan.evil}", i))
            queue = notifier_id(i % 2**16)
            new = ntf.SNew(token.token_id, server, queue, notifier)
            answer = await _one(connection, Command(new.encode(version), b"", token.key))
            self.count(f"SNEW {answer.partition(b' ')[0].decode()}")
            if answer.startswith(b"IDSUB"):
                subscribed = ntf.parse_answer(answer, version)
                assert isinstance(subscribed, ntf.IdSub)
                await _one(connection, Command(ntf.SDel().encode(version), subscribed.subscription_id, token.key))
            i += self._sessions

    def figures(self) -> Mapping[str, float]:
        """With the sessions that the relay has there now."""
        return {**super().figures(), "connections held": self._smp.stats()["connections"]}


async def _one(connection: Connection, command: Command) -> bytes:
    return (await run([connection], [command], window=1)).answers[0]


def _spelling(host: str, i: int) -> str:
    """The i-th of them: upper and lower case, with and without a dot at the end."""
    letters = [c.upper() if i >> (k + 1) & 1 else c for k, c in enumerate(host)]
    return "".join(letters) + "." * (i & 1)
