"""How many commands of devices a relay answers, by the type of the devices' keys, and what it takes when idle.

See README.md for what is printed.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import apns_options
import devices
import footprint
from control import Child, child, run
from devices import KeyKind
from fill import environment, init
from ntf_load import Connection, Run, connected
from report import Row, say, show

from smp_bridge.address import ServerAddress

# Goals of the issue.
DEVICES: Final = 2000  # registered and verified a second
SNEW: Final = 3000  # a second
PING: Final = 20_000  # a second

_KINDS: Final[tuple[KeyKind, ...]] = ("ed25519", "ed448", "x25519")


def command_rows(name: str, r: Run, goal: float | None = None) -> list[Row]:
    """Rate, time of an answer, and what it cost the generator: near 100 %, that is what was measured."""
    return [
        Row(f"{name} a second", r.rate, "/s", goal, True),
        Row("  p99", r.p99 * 1000, "ms"),
        Row("  CPU of the generator, of one core", r.core * 100, "%", 90),
    ]


async def commands(
    arguments: argparse.Namespace,
    name: str,
    connections: Sequence[Connection],
    mock: Child,
    server: ServerAddress,
) -> None:
    """All commands, with every type of keys."""
    window, count = arguments.window, arguments.devices
    for place, kind in enumerate(arguments.keys):
        new = devices.new_devices(count, kind)
        registered, pushed = await devices.register(connections, new, mock, window=window, timeout=arguments.timeout)
        verified = await devices.verify(connections, new, window=window)
        queues = range(place * count * arguments.queues, (place + 1) * count * arguments.queues)
        subscribed, ids = await devices.subscribe(connections, new, [server], queues, window=window)
        checked = await devices.check(connections, new, ids, window=window)
        both = count / (pushed + verified.seconds)
        rows = [
            Row("TNEW, code pushed, TVFY: devices a second", both, "/s", DEVICES, True),
            *command_rows("TNEW", registered),
            *command_rows("TVFY", verified),
            *command_rows("SNEW", subscribed, SNEW),
            *command_rows("SCHK", checked),
        ]
        show(f"{name}: {count:,} devices with {kind} keys, {len(connections)} connections", rows)
    one = await devices.ping(connections, arguments.pings, window=window, filled=False)
    filled = await devices.ping(connections, arguments.pings, window=window, filled=True)
    rows = [*command_rows("PING, one in a block", one, PING), *command_rows("PING, blocks filled", filled, PING)]
    show(f"{name}: PING, {len(connections)} connections", rows)


async def ours(arguments: argparse.Namespace, mock: Child, settings: dict[str, str], server: ServerAddress) -> None:
    """This project's relay, with a new database."""
    env = os.environ | environment(services=False) | settings
    with tempfile.TemporaryDirectory(prefix="ntf-bench-") as folder:
        await init(Path(folder))
        async with child("relay_process.py", folder, environment=env) as relay:
            say(f"the relay has process id {relay.pid}")
            async with connected(footprint.address(relay), arguments.connections) as connections:
                await relay.call("reset")
                await commands(arguments, "ntf-relay", connections, mock, server)
                figures = await relay.call("figures")
    threads = sorted(figures["cpu"].items(), key=lambda item: -item[1])
    rows = [Row(f"CPU of thread {name}", seconds, "s") for name, seconds in threads if seconds >= 0.01]
    rows += [Row(f"event loop stall {name}", seconds * 1000, "ms") for name, seconds in figures["stalls"].items()]
    show("ntf-relay: over all commands", rows)


async def main(arguments: argparse.Namespace) -> None:
    """One run."""
    say(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    queues = max(arguments.subscriptions, arguments.devices * arguments.queues * len(arguments.keys))
    async with AsyncExitStack() as stack:
        mock, settings = await stack.enter_async_context(apns_options.mock_apns(arguments))
        load = await stack.enter_async_context(child("smp_load.py", "--servers", "1", "--queues", str(queues)))
        server = ServerAddress.from_text(load.ready["servers"][0])
        if not arguments.only_against:
            if arguments.subscriptions:
                await footprint.measure(arguments, load)
            await ours(arguments, mock, settings, server)
        if arguments.against:
            address = ServerAddress.from_text(arguments.against)
            async with connected(address, arguments.connections) as connections:
                await commands(arguments, str(address.hosts[0]), connections, mock, server)
    say(f"load average {os.getloadavg()[0]:.2f} at the end")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--keys", nargs="+", choices=_KINDS, default=_KINDS, help="of devices (all)")
    add("--devices", type=int, default=4000, metavar="N", help="of each type (%(default)s)")
    add("--queues", type=int, default=2, metavar="N", help="that each subscribes (%(default)s)")
    add("--pings", type=int, default=40_000, metavar="N", help="default %(default)s")
    add("--connections", type=int, default=8, metavar="N", help="default %(default)s")
    add("--window", type=int, default=32, metavar="N", help="commands under way on each (%(default)s)")
    add("--subscriptions", type=int, default=10_000, metavar="N", help="of an idle relay, 0: no idle (%(default)s)")
    add("--idle", type=int, default=10_000, metavar="N", help="connections of idle clients (%(default)s)")
    add("--timeout", type=float, default=60.0, metavar="S", help="of what is waited for (%(default)s)")
    apns_options.add_options(parser)
    out = parser.parse_args()
    apns_options.check_options(parser, out)
    return out


if __name__ == "__main__":
    run(main(parse()))
