"""Claims as the store would hand them out, and a way to await what a provider makes of them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ntf_server.push.verdict import Delivered, PushProvider, Verdict
from ntf_server.store.records import Claim, Entry, Lane, PushKind
from smp_bridge import crypto
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, Provider

NOW = 1_800_000_000
SECRET = bytes(range(32))
CODE = b"c" * 32
SERVER = ServerAddress("smp", ("smp.example.org",), "", bytes(32))
VERIFICATION, MESSAGES, CHECK = PushKind
TTL = {VERIFICATION: 600, MESSAGES: 28 * 24 * 3600, CHECK: 3600}


class Clock:
    """Seconds that a test sets."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def entry(server: ServerAddress = SERVER, seq: int = 1, *, sent: bool = False) -> Entry:
    """A notification of a queue."""
    return Entry(seq, seq, sent, server, b"q" * 24, NOW, b"n" * 24, b"m" * 144)


ENTRY = entry()
LONG = entry(ServerAddress("smp", ("h" * 200, "o" * 56 + ".onion"), "12345", bytes(32)))
TOO_LARGE = entry(ServerAddress("smp", ("h" * 255,) * 12, "", bytes(32)))


def claim(provider: Provider, device: bytes, kind: PushKind = VERIFICATION, ref: int = 1, **fields: Any) -> Claim:
    """A claim of a token."""
    fields = {"code": CODE, "entries": (ENTRY,) * (kind is MESSAGES), "push_id": bytes([ref]) * 16, **fields}
    return Claim(
        token=ref,
        registration=0,
        lane=Lane(provider),
        device=DeviceToken(provider, device),
        secret=crypto.box_key(SECRET),
        kind=kind,
        since=NOW,
        **fields,
    )


@dataclass(frozen=True)
class Took:
    """`Delivered`, but two of one content are equal."""

    held: tuple[Entry, ...] = ()


def comparable(verdict: Verdict) -> Any:
    """The verdict, or `Took`."""
    return Took(verdict.held) if isinstance(verdict, Delivered) else verdict


class Sender:
    """A provider, and a way to await its verdicts."""

    def __init__(self, provider: PushProvider) -> None:
        self.provider: Any = provider

    async def send(self, *claims: Claim) -> list[Any]:
        """What became of each."""
        verdicts: dict[Any, asyncio.Future[Any]] = {c.token: asyncio.Future() for c in claims}
        self.provider.send(claims, lambda c, verdict: verdicts[c.token].set_result(comparable(verdict)))
        return await asyncio.wait_for(asyncio.gather(*verdicts.values()), 10)

    async def one(self, claim: Claim) -> Any:
        """What became of it."""
        [verdict] = await self.send(claim)
        return verdict


Made = Callable[..., Claim]
