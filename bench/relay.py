"""How fast NMSGs become pushes, from the SMP server to a mock APNs, what a push costs, and how long it takes.

See README.md for what is printed.
"""

import argparse
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apns_options
from bursts import Bursts, Measured, Target
from control import Child, child, run
from devices import PATH, new_devices, register, subscribe, until_subscribed, verify
from fill import Content, device_token, environment, fill, init
from ntf_load import connected
from percentiles import percentile
from report import MIB, Row, say, show

from ntf_server.config import files as config
from smp_bridge import ntf
from smp_bridge.address import ServerAddress

# Goals of the issue, with 5,000 devices on one SMP server.
RATE: Final = {0: 15_000, 50: 10_000, 200: 10_000}  # pushes a second, by the latency of APNs in milliseconds
CPU: Final = 0.1  # milliseconds a push
P99: Final = 25  # milliseconds, when 2,000 a second are offered


def rows(m: Measured, goals: Sequence[Row]) -> list[Row]:
    """What is printed of any mode, after `goals`."""
    latencies = sorted(m.latencies)
    pushes = max(1, m.pushes)
    threads = sorted(m.cpu.items(), key=lambda item: -item[1])
    total = sum(m.cpu.values())
    return [
        *goals,
        *([Row("answered with an error", m.refused, "")] if m.refused else []),
        Row("devices whose pushes cannot be matched: retried, or coalesced", m.unmatched, ""),
        Row("bytes of a push", m.received / pushes, "B", 4096),
        *([Row("CPU a push, all threads", total / pushes * 1000, "ms", CPU)] if m.cpu else []),
        *(Row(f"  thread {name}", s / pushes * 1000, "ms") for name, s in threads if s >= total / 100),
        *(Row(f"event loop stall {name}, worst burst", s * 1000, "ms") for name, s in m.stalls.items()),
        *([Row("RSS", m.rss / MIB, "MiB")] if m.rss else []),
        Row("CPU of the mock, of one core", m.mock_cpu / m.seconds * 100, "%", 90),
        Row("CPU of the SMP server, of one core", m.generator_cpu / m.seconds * 100, "%", 90),
        *(Row(f"NMSG to push p{p}", percentile(latencies, p) * 1000, "ms") for p in (50, 95, 99) if latencies),
    ]


@dataclass(frozen=True, slots=True)
class Bench:
    """What all parts of a run share."""

    arguments: argparse.Namespace
    bursts: Bursts
    server: ServerAddress

    @property
    def mock(self) -> Child:
        """APNs."""
        return self.bursts.mock


async def measure(bench: Bench, target: Target) -> None:
    """All modes, on one server."""
    arguments, devices = bench.arguments, len(target.paths)
    await bench.mock.call("set")
    await bench.bursts.burst(target, range(devices), Measured())  # connections are made, code is warm
    for latency in arguments.latency:
        await set_mock(bench, latency)
        m = Measured()
        for _ in range(arguments.bursts):
            await bench.bursts.burst(target, range(devices), m)
        rate = Row("pushes a second", m.notified / m.seconds, "/s", RATE.get(latency), True)
        title = f"{target.name}: {arguments.bursts} bursts to {devices:,} devices, APNs takes {latency} ms"
        show(title, rows(m, [rate, Row("pushes", m.pushes, "")]))
    await set_mock(bench, arguments.offered_latency)
    if arguments.rate:
        await offered(bench, target)
    if arguments.queues > 1:
        await many_queues(bench, target)


async def offered(bench: Bench, target: Target) -> None:
    """A steady rate."""
    arguments, devices, m = bench.arguments, len(target.paths), Measured()
    queues = [i % devices for i in range(round(arguments.rate * arguments.seconds))]
    await bench.bursts.burst(target, queues, m, rate=arguments.rate)
    p99 = percentile(sorted(m.latencies), 99) * 1000
    table = rows(m, [Row("pushes", m.pushes, "")])[:-1]
    table.append(Row("NMSG to push p99", p99, "ms", P99))
    show(f"{target.name}: {arguments.rate:,.0f} NMSGs a second, APNs takes {arguments.offered_latency} ms", table)


async def many_queues(bench: Bench, target: Target) -> None:
    """All queues of every device at once: their notifications share pushes."""
    arguments, m = bench.arguments, Measured()
    queues = range(len(target.paths) * arguments.queues)
    await bench.bursts.burst(target, queues, m, latency=arguments.offered_latency / 1000)
    first = [
        Row("NMSGs a second", m.notified / m.seconds, "/s"),
        Row("pushes a second", m.pushes / m.seconds, "/s"),
        Row("pushes a device", m.pushes / len(target.paths), ""),
    ]
    if (unsent := target.unsent()) >= 0:
        first.append(Row("notifications not pushed", unsent, "", 0))
    table = [row for row in rows(m, first) if not row.name.startswith("devices whose")]
    show(f"{target.name}: {arguments.queues} queues for each of {len(target.paths):,} devices", table)


async def set_mock(bench: Bench, latency: int) -> None:
    """`latency` in milliseconds."""
    a = bench.arguments
    await bench.mock.call("set", latency=latency / 1000, error_rate=a.error_rate, status=a.error_status)


@asynccontextmanager
async def ours(bench: Bench, directory: Path, apns: dict[str, str]) -> AsyncIterator[Target]:
    """This project's relay with a full database."""
    arguments = bench.arguments
    await init(directory)
    settings = environment(services=False) | apns
    if arguments.in_flight:
        settings["NTF_SERVER__DELIVERY__IN_FLIGHT"] = str(arguments.in_flight)
    loaded = config.load(directory)
    count = arguments.devices * arguments.queues
    content = Content(count, arguments.devices, provider=ntf.Provider.APNS_TEST)
    say(f"filling the database with {arguments.devices:,} devices and {count:,} queues")
    await fill(loaded, [bench.server], content)
    paths = [PATH + device_token(i).decode() for i in range(arguments.devices)]
    async with child("relay_process.py", str(directory), environment=os.environ | settings) as relay:
        say(f"the relay has process id {relay.pid}")
        await until_subscribed(bench.bursts.load, count, arguments.timeout)
        yield Target("ntf-relay", paths, relay, config.load_database_path(directory))


async def against(bench: Bench, address: ServerAddress) -> Target:
    """Another server, which gets its devices by the protocol."""
    arguments = bench.arguments
    say(f"registering {arguments.devices:,} devices at {address.hosts[0]}:{address.port_number}")
    devices = new_devices(arguments.devices, "ed25519")
    queues = range(arguments.devices * arguments.queues)
    async with connected(address, arguments.connections) as connections:
        await register(connections, devices, bench.mock, window=arguments.window, timeout=arguments.timeout)
        await verify(connections, devices, window=arguments.window)
        await subscribe(connections, devices, [bench.server], queues, window=arguments.window)
    await until_subscribed(bench.bursts.load, len(queues), arguments.timeout)
    return Target(str(address.hosts[0]), [d.path for d in devices], pid=arguments.against_pid)


async def main(arguments: argparse.Namespace) -> None:
    """One run."""
    say(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    counts = ("--servers", "1", "--queues", str(arguments.devices * arguments.queues))
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ntf-bench-")))
        mock, apns = await stack.enter_async_context(apns_options.mock_apns(arguments))
        load = await stack.enter_async_context(child("smp_load.py", *counts))
        bursts = Bursts(load, mock, arguments.timeout, arguments.tick)
        bench = Bench(arguments, bursts, ServerAddress.from_text(load.ready["servers"][0]))
        if not arguments.only_against:
            async with ours(bench, directory, apns) as target:
                await measure(bench, target)
        if arguments.against:
            await bench.mock.call("set")
            await measure(bench, await against(bench, ServerAddress.from_text(arguments.against)))
    say(f"load average {os.getloadavg()[0]:.2f} at the end")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--devices", type=int, default=5000, metavar="N", help="default %(default)s")
    add("--queues", type=int, default=20, metavar="N", help="of a device in the second mode, 1: without (%(default)s)")
    add("--latency", type=int, nargs="*", default=[0, 5, 50, 200], metavar="MS", help="of APNs (0 5 50 200)")
    add("--bursts", type=int, default=3, metavar="N", help="for each latency (%(default)s)")
    add("--error-rate", type=float, default=0.0, metavar="P", help="of APNs's answers (%(default)s)")
    add("--error-status", type=int, default=503, choices=[400, 410, 429, 503], help="of those (%(default)s)")
    add("--in-flight", type=int, metavar="N", help="our relay's delivery.in_flight (its default)")
    add("--rate", type=float, default=2000.0, metavar="R", help="NMSGs offered a second, 0: not (%(default)s)")
    add("--seconds", type=float, default=5.0, metavar="S", help="for so long (%(default)s)")
    add("--tick", type=float, default=2.0, metavar="MS", help="those of so long share a block (%(default)s)")
    add("--offered-latency", type=int, default=0, metavar="MS", help="of APNs then and with --queues (%(default)s)")
    add("--timeout", type=float, default=60.0, metavar="S", help="of each step (%(default)s)")
    add("--connections", type=int, default=8, metavar="N", help="to it, while devices register (%(default)s)")
    add("--window", type=int, default=32, metavar="N", help="commands under way on each (%(default)s)")
    apns_options.add_options(parser)
    out = parser.parse_args()
    apns_options.check_options(parser, out)
    return out


if __name__ == "__main__":
    run(main(parse()))
