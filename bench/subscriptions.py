"""How fast a relay subscribes after a restart, what it costs, and how it lives through a reconnect storm.

See README.md for what is printed.
"""

import argparse
import asyncio
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nacl.bindings
import redis_server
from control import Child, ChildError, child
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from fill import Content, environment, fill, init
from report import MIB, Row, say, show
from storm import Probe, Pushes

from ntf_client import NtfClient
from ntf_server.config import files as config
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.queue_session import PAGE

# Goals of the issue, for 1,000,000 subscriptions.
RATE: Final = 10_000
SERVICE_SECONDS: Final = 5
RSS: Final = 120
GROWTH: Final = 30
STALL: Final = 50
REDIS_MEMORY: Final = 700
RESTART_OF_ALL: Final = 10  # seconds, on Redis
TCHK: Final = 100

_POLL: Final = 0.1
_BACKOFF: Final = 1.5  # the longest that the agent waits before its first try
_SETTLE: Final = 1.0
_SHARED: Final = 15.0  # seconds after which several relays have given each other their shares
_CALM: Final = 3.0  # seconds of commands before the storm, for comparison
_PUSHES_LATE: Final = 10.0
_YARDSTICK: Final = 2.0


def yardstick() -> float:
    """What one core can do: SHA-512 and Ed25519 signatures a second, of 200 bytes, from Python."""
    _, key = nacl.bindings.crypto_sign_seed_keypair(bytes(32))
    data, count, start = bytes(200), 0, time.process_time()
    while (elapsed := time.process_time() - start) < _YARDSTICK:
        for _ in range(100):
            nacl.bindings.crypto_sign(hashlib.sha512(data).digest() + data, key)
        count += 100
    return count / elapsed


@dataclass(frozen=True, slots=True)
class Bench:
    """What all parts of a run share."""

    arguments: argparse.Namespace
    directory: Path
    environment: dict[str, str]
    load: Child
    signs: float

    @asynccontextmanager
    async def relay(self, number: int = 0) -> AsyncIterator[Child]:
        """Run the relay of this number."""
        directory = self.directory
        if number:
            directory = self.directory.with_name(f"{self.directory.name}-{number}")
            ignored = shutil.ignore_patterns("*.sock", "*.db*")
            await asyncio.to_thread(shutil.copytree, self.directory, directory, ignore=ignored)
        environment = self.environment | {"NTF_SERVER__STORE__NODE": f"node{number}"}
        async with child("relay_process.py", str(directory), environment=environment) as relay:
            yield relay

    async def subscribed(self, since: float) -> dict[str, Any]:
        """The generator's figures once all are subscribed, after `since` if they were before. Raises TimeoutError."""
        async with asyncio.timeout(self.arguments.timeout):
            while True:
                stats: dict[str, Any] = await self.load.call("stats")
                if stats["complete_at"] is not None and stats["complete_at"] > since:
                    return stats
                await asyncio.sleep(_POLL)


async def empty(bench: Bench) -> int:
    """RSS of a relay that has nothing to do, in bytes."""
    async with bench.relay() as relay:
        await asyncio.sleep(1)
        rss: int = (await relay.call("figures"))["rss"]
        return rss


async def restart(bench: Bench, stack: AsyncExitStack, rss_before: int) -> tuple[Child, float]:
    """Start the relay and have it subscribe all: the relay, and the seconds that it took."""
    count = bench.arguments.subscriptions
    before, started = await bench.load.call("stats"), time.monotonic()
    entering = [stack.enter_async_context(bench.relay(n)) for n in range(1, bench.arguments.nodes)]
    relay, *_ = await asyncio.gather(stack.enter_async_context(bench.relay()), *entering)
    say(f"the relay has process id {relay.pid}")
    await relay.call("reset")
    stats = await bench.subscribed(started)
    figures = await relay.call("figures")
    arguments = bench.arguments
    settle = _SETTLE if arguments.nodes == 1 else _SHARED
    await asyncio.sleep(settle)
    settled = await bench.load.call("stats")
    seconds = stats["complete_at"] - started
    by_service = arguments.service and not arguments.first
    goal = RESTART_OF_ALL if arguments.redis else SERVICE_SECONDS
    rows = [
        Row("from start to all subscribed", seconds, "s", goal if by_service else None),
        Row("  of that until it listens", relay.ready["listening_at"] - started, "s"),
        Row("  of that from the first NSUB or NSUBS to the last", stats["complete_at"] - stats["first_at"], "s"),
        *([] if by_service else rate_rows(bench, stats)),
        Row(
            f"NSUBs sent until {settle:g} s after that",
            settled["nsubs"] - before["nsubs"],
            "",
            0 if by_service else count,
        ),
        Row("  of them refused", settled["refused"] - before["refused"], "", 0),
        Row(f"subscribed {settle:g} s later", settled["subscribed"], "", count, at_least=True),
        Row("RSS before, with an empty database", rss_before / MIB, "MiB"),
        Row("RSS after", figures["rss"] / MIB, "MiB", RSS),
        Row("  peak", figures["peak"] / MIB, "MiB"),
        Row("  growth for each, connections included", (figures["rss"] - rss_before) / count, "B", GROWTH),
        *stall_rows(figures),
        *cpu_rows(figures, (stats["cpu"] - before["cpu"]) / seconds),
    ]
    show(f"Restart of {arguments.nodes} with {count:,} subscriptions", rows)
    return relay, seconds


async def moved(bench: Bench, server: redis_server.Server) -> None:
    """What the database has is in this Redis, and the relays use it."""
    before, start = server.memory(), time.monotonic()
    source = f"sqlite:///{config.load_database_path(bench.directory).name}"
    arguments = ("migrate", source, server.url, "--path", str(bench.directory))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ntf_server", *arguments), stdout=asyncio.subprocess.DEVNULL, stderr=-1
    )
    _, error = await process.communicate()
    if process.returncode:
        raise ChildError(f"ntf-server migrate: {error.decode()}")
    bench.environment["NTF_SERVER__STORE__URL"] = server.url
    count = bench.arguments.subscriptions
    rows = [
        Row("ntf-server migrate", time.monotonic() - start, "s"),
        Row("memory of Redis for each subscription", (server.memory() - before) / count, "B", REDIS_MEMORY),
    ]
    show(f"{count:,} subscriptions in Redis", rows)


async def storm(bench: Bench, relay: Child, subscribing: float) -> None:
    """Drop all connections while commands and notifications go on."""
    address = ServerAddress("ntf", ("127.0.0.1",), str(relay.ready["port"]), bytes.fromhex(relay.ready["key_hash"]))
    key, dh_key = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
    async with AsyncExitStack() as stack:
        connect = NtfClient.connect
        clients = [await stack.enter_async_context(connect(address)) for _ in range(bench.arguments.clients)]
        device = ntf.DeviceToken(ntf.Provider.APNS_NULL, b"bench probe")
        token_id = (await clients[0].register(device, key, dh_key)).token_id
        probe = await stack.enter_async_context(Probe(clients, token_id, key))
        await asyncio.sleep(_CALM)
        calm = await probe.take()
        pushes = Pushes(bench.load, config.load_database_path(bench.directory), bench.arguments.subscriptions)
        await relay.call("reset")
        before = await bench.load.call("stats")
        dropped = await bench.load.call("drop")
        if every := bench.arguments.deleted:
            say(f"{await bench.load.call('delete', every=every):,} queues are deleted there meanwhile")
        async with pushes:
            stats = await bench.subscribed(dropped)
        stormy = await probe.take()
        await asyncio.sleep(_SETTLE)
        settled = await bench.load.call("stats")
        figures = await relay.call("figures")
        at_once = await pushes.delivered(0)
        delivered = await pushes.delivered(_PUSHES_LATE)
    seconds = stats["complete_at"] - dropped
    servers, nsubs = bench.arguments.servers, settled["nsubs"] - before["nsubs"]
    show(
        f"All {servers} servers drop at once",
        [
            Row("until all are subscribed again", seconds, "s", _BACKOFF + subscribing),
            Row("  of that until the first NSUB or NSUBS", stats["first_at"] - dropped, "s"),
            Row("most connections that a server saw at once", stats["most_connections_of_a_server"], "", 1),
            Row("connections made", stats["accepted"] - before["accepted"], ""),
            Row("NSUBs sent until a second after that", nsubs, "", storm_nsubs(bench.arguments)),
            Row("TCHK p50 before", calm.p50 * 1000, "ms"),
            Row("TCHK p99 before", calm.p99 * 1000, "ms"),
            Row("TCHK p50", stormy.p50 * 1000, "ms"),
            Row("TCHK p99", stormy.p99 * 1000, "ms", TCHK),
            Row("TCHK max", stormy.longest * 1000, "ms"),
            Row("TCHKs that failed", stormy.failed, "", 0),
            Row("NMSGs sent meanwhile", pushes.sent, ""),
            Row("  not pushed when all are back", pushes.sent - at_once, ""),
            Row("  not pushed 10 s later", pushes.sent - delivered, "", 0),
            *stall_rows(figures),
            Row("RSS", figures["rss"] / MIB, "MiB", RSS),
            *cpu_rows(figures, (stats["cpu"] - before["cpu"]) / seconds),
        ],
    )


def storm_nsubs(arguments: argparse.Namespace) -> int:
    """How many NSUBs at most: none of a service, but for a few pages of an audit if its servers lack some."""
    if not arguments.service:
        return int(arguments.subscriptions)
    return arguments.servers * PAGE * 4 if arguments.deleted else 0


def rate_rows(bench: Bench, stats: dict[str, Any]) -> list[Row]:
    """NSUBs a second. Those of a service that is not known yet carry two signatures: no goal is set for them."""
    rate = bench.arguments.subscriptions / (stats["complete_at"] - stats["first_at"])
    return [
        Row("subscriptions a second, while it sends", rate, "/s", None if bench.arguments.service else RATE, True),
        Row("  as a part of this core's signatures a second", rate / bench.signs, ""),
    ]


def stall_rows(figures: dict[str, Any]) -> list[Row]:
    """How late the relay's event loop was."""
    stalls = {name: seconds * 1000 for name, seconds in figures["stalls"].items()}
    return [
        Row("event loop stall p50", stalls["p50"], "ms"),
        Row("event loop stall p99", stalls["p99"], "ms", STALL),
        Row("event loop stall max", stalls["max"], "ms"),
    ]


def cpu_rows(figures: dict[str, Any], generator: float) -> list[Row]:
    """Who used the processors; a generator near 100 % is what was measured."""
    threads = sorted(figures["cpu"].items(), key=lambda item: -item[1])
    rows = [Row(f"CPU of the relay's thread {name}", seconds, "s") for name, seconds in threads if seconds >= 0.01]
    return [*rows, Row("CPU of the generator, of one core", generator * 100, "%", 90)]


async def main(arguments: argparse.Namespace) -> None:
    """One run."""
    signs = yardstick()
    say(f"this core makes {signs:,.0f} signatures a second; load average {os.getloadavg()[0]:.2f}")
    counts = ("--servers", str(arguments.servers), "--queues", str(arguments.subscriptions))
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ntf-bench-")))
        services = ["--services"] if arguments.service else []
        load = await stack.enter_async_context(child("smp_load.py", *counts, *services))
        await init(directory)
        settings = environment(services=arguments.service)
        bench = Bench(arguments, directory, os.environ | settings, load, signs)
        rss_before = await empty(bench)
        say(f"filling the database with {arguments.subscriptions:,} subscriptions")
        servers = [ServerAddress.from_text(text) for text in load.ready["servers"]]
        content = Content(arguments.subscriptions, arguments.tokens, arguments.key, arguments.service, arguments.first)
        start = time.monotonic()
        known = await fill(config.load(directory), servers, content)
        say(f"filled in {time.monotonic() - start:.0f} s")
        if arguments.redis:
            await moved(bench, stack.enter_context(redis_server.Server(directory / "redis")))
        if known:
            await load.call("associate", services=[certificate_hash.hex() for certificate_hash in known])
        relay, seconds = await restart(bench, stack, rss_before)
        if arguments.storm:
            await storm(bench, relay, seconds)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--subscriptions", type=int, default=1_000_000, metavar="N", help="default %(default)s")
    parser.add_argument("--servers", type=int, default=200, metavar="N", help="SMP servers (%(default)s)")
    parser.add_argument("--tokens", type=int, default=1000, metavar="N", help="that have them (%(default)s)")
    parser.add_argument("--key", choices=["ed25519", "x25519"], default="ed25519", help="of notifiers (%(default)s)")
    parser.add_argument("--service", action="store_true", help="be a service that the servers know")
    parser.add_argument("--first", action="store_true", help="nothing was subscribed, nor associated, before")
    parser.add_argument("--storm", action="store_true", help="then drop all connections at once")
    parser.add_argument("--deleted", type=int, default=0, metavar="N", help="one queue in N is deleted in the storm")
    parser.add_argument("--redis", action="store_true", help="the store is a Redis, into which the database is moved")
    parser.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="relays on it, started together (%(default)s)"
    )
    parser.add_argument("--clients", type=int, default=1, metavar="N", help="that share the TCHKs (%(default)s)")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="default %(default)s")
    arguments = parser.parse_args()
    if arguments.redis and arguments.storm:
        parser.error("--storm is for a database")
    if arguments.nodes > 1 and not arguments.redis:
        parser.error("several relays need --redis")
    return arguments


if __name__ == "__main__":
    try:
        asyncio.run(main(parse()))
    except ChildError as e:
        sys.exit(f"{e}, see above")
    except TimeoutError:
        sys.exit("not everything was subscribed in time")
