"""What every attack has: its plan, and what it does with it, in a process of its own."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from from_address import Connection, connect_from, many_addresses
from ntf_load import Command, Run, send, sign

from smp_bridge.address import ServerAddress

ONE: Final = "127.0.0.66"  # the stranger's address
ADDRESSES: Final = 10_000
ONE_ADDRESS: Final = 1500 + 500  # sessions_per_address and half_open_per_address: what it may hold open
MANY_ADDRESSES: Final = 20_000 + 4000  # sessions and half_open
CONNECTING: Final = 1024  # [subscriber] connecting
UNPROVEN: Final = 2000  # half of [delivery] in_flight: connections to push services that took nothing yet
_A_SESSION: Final = 1900  # commands that one session may send at once: a little less than `commands_per_session`
_AT_ONCE: Final = 32
_POLL: Final = 0.1


@dataclass(frozen=True, slots=True)
class Token:
    """An ACTIVE registration of the stranger's."""

    token_id: bytes
    key: Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Plan:
    """Whom to attack, and with what. `is_sink`: it is no relay, and pushes nothing.

    `part`: how much of the full number, for short runs; `victim`: somebody's device token; `evil`, `silent`: domains
    whose names lead to `evil_host`, and are never answered for; `cert_file`, `key_file`: for names of the first.
    """

    target: ServerAddress
    is_sink: bool
    tokens: Sequence[Token]
    part: float
    victim: str
    evil: str
    evil_host: str
    silent: str
    cert_file: str
    key_file: str

    def count(self, full: int) -> int:
        """Of so many, as many as this run has."""
        return max(1, round(full * self.part))


class Attack(ABC):
    """One attack. `prepare` connects and signs; `run` goes on until it is cancelled.

    `about`: what it is, in a line; `tokens`: ACTIVE registrations that it is given; `addresses`: that it comes from;
    `descriptors`: that the relay's documented limits let it hold open; `has_victim`: it is about one device;
    `settle`: seconds that it may take until it is in place; `spends_all`: so many addresses spend what there is for all
    together, for which nobody waits longer than 20 s.
    """

    about: ClassVar[str]
    tokens: ClassVar[int] = 0
    addresses: ClassVar[int] = 1
    descriptors: ClassVar[int] = ONE_ADDRESS
    has_victim: ClassVar[bool] = False
    settle: ClassVar[float] = 15.0
    spends_all: ClassVar[bool] = False

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.in_place = asyncio.Event()
        self.counts: dict[str, float] = {}
        self.answers: list[list[bytes]] = []

    @abstractmethod
    async def prepare(self) -> None:
        """Everything that is not to be measured."""

    @abstractmethod
    async def run(self) -> None:
        """Attack; sets `in_place` when all of it is there."""

    def figures(self) -> Mapping[str, float]:
        """What it did, by name."""
        return self.counts | Counter(_what(answer) for answers in self.answers for answer in answers if answer)

    def count(self, name: str, n: float = 1) -> None:
        """So much more."""
        self.counts[name] = self.counts.get(name, 0) + n

    def source(self, i: int) -> str:
        """The address of its i-th connection."""
        return ONE if self.addresses == 1 else many_addresses(self.addresses)(i)

    async def until(self, condition: Callable[[], bool], timeout: float = 60.0) -> None:
        """Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError("the attack cannot be prepared")
            await asyncio.sleep(_POLL)

    async def sessions(self, count: int) -> list[Connection]:
        """Raises what `connect_from` raises."""
        turn = asyncio.Semaphore(_AT_ONCE)

        async def one(i: int) -> Connection:
            async with turn:
                return await connect_from(self.source(i), self.plan.target)

        return list(await asyncio.gather(*map(one, range(count))))


class Volley:
    """Commands that are signed before they are sent, over as few sessions as may send them at once."""

    def __init__(self, attack: Attack, sessions: int = 0) -> None:
        self._attack = attack
        self._sessions = sessions

    async def load(self, commands: Sequence[Command]) -> None:
        """Connect and sign. Raises what `connect_from` raises."""
        self.count = len(commands)
        self.connections = await self._attack.sessions(self._sessions or -(-self.count // _A_SESSION))
        self._signed = sign(self.connections, commands)

    async def fire(self, window: int = 32) -> Run:
        """Send all. Raises ConnectionClosedError."""
        answers: list[bytes] = []
        self._attack.answers.append(answers)
        return await send(self.connections, self._signed, window=window, answers=answers)


def _what(answer: bytes) -> str:
    return f"answered {(answer if answer.startswith(b'ERR') else answer.partition(b' ')[0]).decode('latin-1')}"
