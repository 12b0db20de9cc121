"""Honest phones while strangers are at work: one that asks, new ones that register, one behind a stranger's address."""

import asyncio
import contextlib
import itertools
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from control import Child
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from devices import Device, new_devices
from from_address import connect_from

from ntf_client.client import NtfClient
from ntf_client.push import PushError, VerificationCode
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client, ServerError, UnexpectedAnswerError
from smp_bridge.handshake import HandshakeError
from smp_bridge.transport import ConnectionClosedError

ASKING: Final = "127.0.0.9"
CHECKS: Final = 20  # TCHKs a second
PATIENCE: Final = 45.0  # seconds that a phone waits for anything
FAILED: Final = (OSError, TimeoutError, ServerError, UnexpectedAnswerError, HandshakeError)
_AGAIN: Final = 0.5
_PAUSE: Final = 1.0
_POLL: Final = 0.02
_PAGE: Final = 1000


class Pushes:
    """What the mock APNs got, by path: bodies, with when each had come (time.monotonic_ns)."""

    def __init__(self, mock: Child) -> None:
        self._mock = mock
        self.came: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        self._over = False

    async def run(self) -> None:
        """Collect, until `stop`: to cancel it would leave an answer to the next who asks."""
        while not self._over:
            page = await self._mock.call("pushes", limit=_PAGE)
            for path, body, at in page:
                self.came[path].append((body, at))
            if len(page) < _PAGE:
                await asyncio.sleep(_POLL)

    def stop(self) -> None:
        """No more."""
        self._over = True

    async def code(self, device: Device) -> bytes:
        """The first that came to a device and is for this registration: others may have registered it too."""
        looked_at = 0
        while True:
            for body, _ in self.came[device.path][looked_at:]:
                looked_at += 1
                with contextlib.suppress(PushError):
                    content = device.content(body)
                    assert isinstance(content, VerificationCode)
                    return content.code
            await asyncio.sleep(_POLL)


@dataclass(slots=True)
class Seen:
    """What phones saw: `checks` and `registered` in seconds, `served` of the one behind a stranger's address.

    `refused`: what failed for those elsewhere, in words.
    """

    checks: list[float] = field(default_factory=list)
    registered: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def client_from(source: str, relay: ServerAddress, timeout: float = PATIENCE) -> AsyncIterator[NtfClient]:
    """A phone's session. Raises what `connect_from` raises."""
    client = Client(*await connect_from(source, relay, timeout))
    async with client:
        yield NtfClient(client, timeout=timeout)


async def ask(relay: ServerAddress, owner: Device, seen: Seen) -> None:
    """TCHKs at a steady rate in one session, timed from when each was due, until cancelled."""
    while True:
        try:
            async with client_from(ASKING, relay) as client, asyncio.TaskGroup() as group:
                due = time.monotonic()
                while True:
                    group.create_task(_check(client, owner, due, seen))
                    due += 1 / CHECKS
                    await asyncio.sleep(due - time.monotonic())
        except* FAILED as e:
            seen.refused.append(f"TCHK: {e.exceptions[0]!r}")
        await asyncio.sleep(_AGAIN)


async def _check(client: NtfClient, owner: Device, due: float, seen: Seen) -> None:
    await client.check(owner.token_id, owner.key)
    seen.checks.append(time.monotonic() - due)


async def register(
    source: str,
    relay: ServerAddress,
    device: Device,
    pushes: Pushes,
    *,
    server: ServerAddress | None = None,
    patience: float = PATIENCE,
) -> None:
    """TNEW, the code by push, TVFY; SNEW of a queue that is not there. Raises one of FAILED."""
    async with client_from(source, relay) as client, asyncio.timeout(patience):  # its own is of each answer
        registration = await client.register(device.token, device.key, device.dh_key)
        device.token_id, device.secret = registration.token_id, registration.secret
        await client.verify(device.token_id, device.key, await pushes.code(device))
        if server is not None:
            notifier = Ed25519PrivateKey.generate()
            await client.subscribe(device.token_id, device.key, server, os.urandom(24), notifier)


async def arrive(
    relay: ServerAddress, servers: Sequence[ServerAddress], pushes: Pushes, seen: Seen, over: asyncio.Event
) -> None:
    """New phones register and subscribe, each from an address of its own, one after another, until it is over."""
    for i in itertools.count():
        source = f"127.0.{30 + i // 250 % 100}.{i % 250 + 1}"
        with _timed(seen.registered):
            try:
                await register(source, relay, new_devices(1, "ed25519")[0], pushes, server=servers[i % len(servers)])
            except FAILED as e:
                seen.refused.append(f"registration: {e!r}")
        if await _is_over(over):
            return


async def neighbour(source: str, relay: ServerAddress, owner: Device, seen: Seen, over: asyncio.Event) -> None:
    """One behind a stranger's address: a new session and a TCHK in it, then a TNEW, again and again."""
    while True:
        client = None
        try:
            with _timed(seen.served):
                client = await _checked(source, relay, owner)
            device = new_devices(1, "ed25519")[0]
            with _timed(seen.served), contextlib.suppress(ConnectionClosedError):  # it may have been the oldest
                await NtfClient(client).register(device.token, device.key, device.dh_key)
        finally:
            if client is not None:
                await client.close()
        if await _is_over(over):
            return


async def _checked(source: str, relay: ServerAddress, owner: Device) -> Client:
    """A session in which a TCHK was answered, tried as often as it takes."""
    while True:
        client = None
        try:
            client = Client(*await connect_from(source, relay, PATIENCE))
            await NtfClient(client, timeout=PATIENCE).check(owner.token_id, owner.key)
        except FAILED:
            if client is not None:
                await client.close()
            await asyncio.sleep(_AGAIN)
        else:
            return client


@contextlib.contextmanager
def _timed(out: list[float]) -> Iterator[None]:
    """How long it took, or, if it is cancelled, at least."""
    started = time.monotonic()
    try:
        yield
    finally:
        out.append(time.monotonic() - started)


async def _is_over(over: asyncio.Event) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(over.wait(), _PAUSE)
    return over.is_set()
