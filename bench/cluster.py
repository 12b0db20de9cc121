"""The relay on a Redis: beside SQLite, several of them, and how one takes over from another. See README.md.

Exit codes: 0 all that is wanted holds, 1 something does not.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

import devices
import nodes
import redis_server
import take_over
from comparison import Figure, compare, sequence, table
from report import say
from scene import Scene, Stage
from wire_relay import Side

PARTS: Final = ("pushes", "nodes", "take-over")
_LATENCIES: Final = (0, 50)  # milliseconds

_PUSHES: Final = (
    Figure("pushes at 0 ms", "/s", 0.6, at_least=True),
    Figure("pushes at 50 ms", "/s", 0.6, at_least=True),
    Figure("CPU a push, relay", "ms"),
    Figure("CPU a push, Redis", "us"),
)


async def pushes(stage: Stage, server: redis_server.Server, alternations: int) -> bool:
    """One NMSG for each of many devices at once, on both stores in turns; whether what is wanted holds."""
    owners, bursts = stage.size(5000, 100), stage.size(6, 1)
    scene = await stage.scene(owners)
    await scene.populate(stage.sides, partial(devices.new_devices, owners, "ed25519"))
    runs: tuple[list[Mapping[str, float]], list[Mapping[str, float]]] = ([], [])
    for number, order in enumerate(sequence(alternations), 1):
        say(f"pushes: alternation {number} of {alternations}")
        for which in order:
            runs[which].append(await _pushes(scene, stage.sides[which], server, owners, bursts))
    names = stage.sides[0].name, stage.sides[1].name
    rows = compare(_PUSHES, *runs)
    print(f"\n{table('pushes: bursts, by what APNs takes', names, rows)}", flush=True)
    return all(row.held for row in rows)


async def _pushes(
    scene: Scene, side: Side, server: redis_server.Server, owners: int, bursts: int
) -> Mapping[str, float]:
    async with scene.started(side) as playing:
        await playing.burst(range(owners))  # connections are made, code is warm
        out, cpu, count, of_redis = {}, [], 0, server.cpu()
        for latency in _LATENCIES:
            await playing.latency(latency)
            result = await playing.burst(range(owners), count=bursts)
            out[f"pushes at {latency} ms"] = result.rate
            cpu.append(result.cpu_each)
            count += result.measured.pushes
        redis_each = (server.cpu() - of_redis) / count * 1e6
        return {**out, "CPU a push, relay": statistics.mean(cpu), "CPU a push, Redis": redis_each}


def main(arguments: argparse.Namespace) -> int:
    """One run; the exit code."""
    return asyncio.run(_main(arguments))


async def _main(arguments: argparse.Namespace) -> int:
    say(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    programs, held = Path(sys.executable).parent, True
    for part in arguments.parts or PARTS:
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ntf-bench-")))
            server = stack.enter_context(redis_server.Server(folder / "redis"))
            store = f'[store]\nurl = "{server.url}"\nnode = "node0"\n'
            sides = Side("SQLite", programs), Side("Redis", programs, (store,))
            stage = Stage(stack, folder, sides, arguments.quick)
            match part:
                case "pushes":
                    held = await pushes(stage, server, arguments.alternations) and held
                case "nodes":
                    held = await nodes.measure(stage, programs, server) and held
                case _:
                    size = (stage.size(6, 1), stage.size(24, 6), stage.size(2, 1))
                    held = await take_over.measure(folder, server, *size) and held
    return 0 if held else 1


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"only these, of {', '.join(PARTS)}")
    parser.add_argument(
        "--alternations", type=int, default=3, metavar="N", help="of pushes: runs of each side (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny loads, to see that it works")
    arguments = parser.parse_args(argv)
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"no part is named {part}")
    return arguments


if __name__ == "__main__":
    sys.exit(main(parse()))
