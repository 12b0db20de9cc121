"""What is tried in a drill: each fault, what tells of it, and what tells of its end."""

import asyncio
import contextlib
import datetime
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest import mock

from harness import RelayProcess
from redis_servers import Server, free_port
from wall_clocks import WallClock
from watching import Prometheus

from drill.site import Site, at_work, registering
from ntf_server.config.identity_files import CA_KEY, renew_certificate
from ntf_server.testing import Answer
from smp_bridge import identity

MANY: Final = 100_000  # answers of a provider that refuses everything
AHEAD: Final = 2 * 3600  # seconds
HERE: Final = Path(__file__).parent


@dataclass(frozen=True)
class Sign:
    """What a place says: `words` that are in it. `place`: "status", "/health", "page", "log", "metrics", "alert"."""

    place: str
    words: str


Done = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Drill:
    """`begin` brings the fault about, `end` mends it. `away`: HOST:PORT of another relay, that alerts are on."""

    begin: Done
    end: Done
    site: Site
    away: str = ""


@dataclass(frozen=True)
class Fault:
    """`run`: a relay at work, and how it gets into trouble, which lasts for `lasts` seconds at least.

    `signs`: while it lasts. In the log something else tells of the end, the event `over` (empty: nothing does);
    everywhere else the sign is gone then. `harmless`: no alert fires, and all is well all the time.
    """

    name: str
    run: Callable[[Path, Prometheus], contextlib.AbstractAsyncContextManager[Drill]]
    signs: Sequence[Sign]
    over: str
    lasts: float = 0.0
    harmless: bool = False


@contextlib.asynccontextmanager
async def _key_revoked(directory: Path, prometheus: Prometheus) -> AsyncIterator[Drill]:
    async with at_work(directory, prometheus) as site:

        async def begin() -> None:
            site.apns.script(*[Answer(403, "InvalidProviderToken")] * MANY)

        async def end() -> None:
            """The operator has a new key, which Apple takes."""
            site.apns.clear()
            await site.command("reload")

        yield Drill(begin, end, site)


@contextlib.asynccontextmanager
async def _provider_down(directory: Path, prometheus: Prometheus) -> AsyncIterator[Drill]:
    async with at_work(directory, prometheus) as site:
        yield Drill(site.apns.stop, site.apns.start, site)


@contextlib.asynccontextmanager
async def _certificate_ends(directory: Path, prometheus: Prometheus) -> AsyncIterator[Drill]:
    async with at_work(directory, prometheus) as site:
        folder = site.relay.directory

        async def begin() -> None:
            with mock.patch.object(identity, "VALIDITY", datetime.timedelta(days=10)):
                renew_certificate(folder, folder / CA_KEY, "ED25519", None)
            await site.command("reload")

        async def end() -> None:
            await site.command("cert", "--sign-algorithm", "ED25519")
            await site.command("reload")

        yield Drill(begin, end, site)


@contextlib.asynccontextmanager
async def _disk_full(directory: Path, prometheus: Prometheus) -> AsyncIterator[Drill]:
    full = directory.with_suffix(".full")
    async with at_work(directory, prometheus, prefix=(sys.executable, str(HERE / "full_disk.py"), str(full))) as site:
        new = asyncio.create_task(registering(site, 0.05))

        async def begin() -> None:
            full.touch()

        async def end() -> None:
            full.unlink()

        try:
            yield Drill(begin, end, site)
        finally:
            new.cancel()


@contextlib.asynccontextmanager
async def _smp_server_gone(directory: Path, prometheus: Prometheus) -> AsyncIterator[Drill]:
    async with at_work(directory, prometheus) as site:
        yield Drill(site.smp_server.stop, site.smp_server.start, site)


@contextlib.asynccontextmanager
async def _clock_off(directory: Path, prometheus: Prometheus) -> AsyncIterator[Drill]:
    """It was off when the relay started: one that is set while it runs changes no provider token before it ends."""
    clock = WallClock(directory.with_suffix(".clock"), 0)
    async with at_work(directory, prometheus, environ=clock.environment) as site:

        async def begin() -> None:
            assert await site.relay.stop() == 0
            clock.ahead = -AHEAD
            await site.relay.start()

        async def end() -> None:
            clock.ahead = 0

        yield Drill(begin, end, site)


@contextlib.asynccontextmanager
async def _node_killed(directory: Path, prometheus: Prometheus) -> AsyncIterator[Drill]:
    """What the other one says."""
    with Server(directory.with_suffix(".redis")) as redis:
        store = {"NTF_SERVER__STORE__URL": redis.url}
        async with at_work(directory, prometheus, environ=store | {"NTF_SERVER__STORE__NODE": "one"}) as site:
            port = free_port()
            prometheus.watch(f"127.0.0.1:{port}")
            other = RelayProcess(
                site.relay.directory,
                site.relay.environment
                | {
                    "NTF_SERVER__STORE__NODE": "two",
                    "NTF_SERVER__METRICS__PORT": str(port),
                    "NTF_SERVER__ADMIN__PORT": "0",
                    "NTF_SERVER__ADMIN__SOCKET": str(directory.with_suffix(".sock")),
                },
                log=directory / "other.log",
            )
            await other.start()

            async def begin() -> None:
                await other.stop(signal.SIGKILL)

            try:
                yield Drill(begin, other.start, site, f"127.0.0.1:{port}")
            finally:
                await other.stop(signal.SIGKILL)


@contextlib.asynccontextmanager
async def _flood(directory: Path, prometheus: Prometheus) -> AsyncIterator[Drill]:
    async with at_work(directory, prometheus, limits=True) as site:
        flood: list[asyncio.Task[None]] = []

        async def begin() -> None:
            flood.extend(asyncio.create_task(registering(site, 0.0)) for _ in range(50))

        async def end() -> None:
            for task in flood:
                task.cancel()

        try:
            yield Drill(begin, end, site)
        finally:
            await end()


FAULTS: Final = (
    Fault(
        "APNs refuses the key",
        _key_revoked,
        (
            Sign("status", "APNs (AP) refuses pushes for what is this server's to mend"),
            Sign("/health", '"state":"ours-to-mend"'),
            Sign("page", "APNs (AP) refuses pushes for what is this server's to mend"),
            Sign("log", "provider.trouble 403 InvalidProviderToken"),
            Sign("metrics", 'ntf_pushes_refused_total{kind="messages",provider="AP"}'),
            Sign("alert", "NtfProviderRefusesUs"),
        ),
        "provider.well",
    ),
    Fault(
        "A certificate is about to end",
        _certificate_ends,
        (
            Sign("status", "the online certificate ends on"),
            Sign("/health", "the online certificate ends on"),
            Sign("page", "the online certificate ends on"),
            Sign("log", "certificate.ending"),
            Sign("alert", "NtfCertificateEnds"),
        ),
        "",
    ),
    Fault(
        "A provider is down for ten minutes",
        _provider_down,
        (
            Sign("status", "APNs (AP) takes no pushes"),
            Sign("/health", '"state":"paused"'),
            Sign("page", "APNs (AP) takes no pushes"),
            Sign("log", "provider.trouble"),
            Sign("metrics", 'ntf_provider_paused{provider="AP"} 1.0'),
            Sign("alert", "NtfProviderAway"),
        ),
        "provider.well",
        lasts=600.0,
    ),
    Fault(
        "The disk is full",
        _disk_full,
        (
            Sign("status", "the store fails"),
            Sign("/health", '"kind":"full"'),
            Sign("page", "the store fails"),
            Sign("log", "store.trouble"),
            Sign("metrics", 'ntf_store_errors_total{kind="full"}'),
            Sign("alert", "NtfStoreFull"),
        ),
        "store.well",
    ),
    Fault(
        "One of your SMP servers is gone",
        _smp_server_gone,
        (
            Sign("status", "own SMP servers are not connected"),
            Sign("/health", '"own_away":["localhost"]'),
            Sign("page", "own SMP servers are not connected"),
            Sign("log", "smp.disconnected"),
            Sign("metrics", 'ntf_smp_sessions{server="localhost"} 0.0'),
            Sign("alert", "NtfOwnSmpServerAway"),
        ),
        "smp.connected",
    ),
    Fault(
        "The clock is two hours off",
        _clock_off,
        (
            Sign("status", "APNs (AP) refuses pushes for what is this server's to mend"),
            Sign("/health", '"state":"ours-to-mend"'),
            Sign("page", "APNs (AP) refuses pushes for what is this server's to mend"),
            Sign("log", "provider.trouble 403 ExpiredProviderToken"),
            Sign("alert", "NtfClockOff"),
            Sign("alert", "NtfProviderRefusesUs"),
        ),
        "provider.well",
    ),
    Fault(
        "A node is killed",
        _node_killed,
        (
            Sign("status", "1 nodes live"),
            Sign("/health", '"nodes":1'),
            Sign("page", '"nodes":1'),
            Sign("metrics", "ntf_store_nodes 1.0"),
            Sign("alert", "NtfDown"),
        ),
        "",
    ),
    Fault(
        "A stranger floods the relay",
        _flood,
        (Sign("metrics", 'ntf_limits_delayed_total{what="registrations_per_address"}'),),
        "",
        lasts=60.0,
        harmless=True,
    ),
)
