"""The benches of `bench/compare`: what each measures of one run of one revision, and what is wanted of two.

Each knows relays by their wire and by the kernel's figures only, see `wire_relay`.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import devices
from bursts import Measured
from comparison import Figure
from percentiles import percentile
from report import MIB
from scene import TIMEOUT, WINDOW, Playing, Scene, Stage
from wire_relay import Side, running

Measure = Callable[[Side], Awaitable[Mapping[str, float]]]

_LATENCIES: Final = (0, 50, 200)  # milliseconds
_POLL: Final = 0.05
_SETTLE: Final = 0.3
_CHECKED: Final = 50  # devices whose pushes are opened
_IDLE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Bench:
    """`open` prepares both sides, and gives what measures one run."""

    about: str
    figures: tuple[Figure, ...]
    open: Callable[[Stage], Awaitable[Measure]]


def _faster(name: str) -> Figure:
    return Figure(name, "/s", 1.0, at_least=True)


# --- bursts


async def _populated(stage: Stage, owners: int, each: int = 1, servers: int = 1) -> Scene:
    scene = await stage.scene(owners * each, servers)
    await scene.populate(stage.sides, partial(devices.new_devices, owners, "ed25519"))
    return scene


def _at(latency: int) -> str:
    return f"pushes at {latency} ms"


async def pushes(stage: Stage) -> Measure:
    """One NMSG for each device at once, by the time that APNs takes."""
    owners, bursts = stage.size(5000, 100), stage.size(6, 1)
    scene = await _populated(stage, owners)

    async def measure(side: Side) -> Mapping[str, float]:
        async with scene.started(side) as playing:
            await playing.burst(range(owners))  # connections are made, code is warm
            out, cpu = {}, []
            for latency in _LATENCIES:
                await playing.latency(latency)
                result = await playing.burst(range(owners), count=bursts)
                out[_at(latency)] = result.rate
                cpu.append(result.cpu_each)
            return {**out, "CPU a push": statistics.mean(cpu)}

    return measure


async def rate(stage: Stage) -> Measure:
    """A steady rate, spread over many devices."""
    owners, offered, seconds = stage.size(5000, 100), stage.size(2000, 200), stage.size(6, 1)
    scene = await _populated(stage, owners)

    async def measure(side: Side) -> Mapping[str, float]:
        async with scene.started(side) as playing:
            await playing.burst(range(owners))
            queues = [i % owners for i in range(offered * seconds)]
            result = await playing.burst(queues, rate=offered)
            latencies = sorted(result.measured.latencies)
            return {
                "CPU an NMSG": result.cpu_each,
                "NMSG to push, p99": percentile(latencies, 99) * 1000,
                "NMSG to push, p50": percentile(latencies, 50) * 1000,
                "pushes not timed": result.measured.notified - len(latencies),
            }

    return measure


async def queues(stage: Stage) -> Measure:
    """All queues of each device at once, which share pushes."""
    owners, each = stage.size(3000, 50), 20
    scene = await _populated(stage, owners, each)

    async def measure(side: Side) -> Mapping[str, float]:
        async with scene.started(side) as playing:
            await playing.check([i + owners * queue for queue in range(each) for i in range(_CHECKED)])
            result = await playing.burst(range(owners * each))
            return {
                "CPU an NMSG": result.cpu_each,
                "pushes a device": result.measured.pushes / owners,
                "NMSGs": result.measured.notified / result.measured.seconds,
            }

    return measure


async def cold(stage: Stage) -> Measure:
    """The first burst on a new connection that allows one stream until its first answer, and the same once more."""
    owners, pairs = stage.size(5000, 100), stage.size(3, 1)
    scene = await _populated(stage, owners)

    async def timed(playing: Playing) -> float:
        result: Measured = (await playing.burst(range(owners))).measured
        return result.seconds

    async def measure(side: Side) -> Mapping[str, float]:
        async with scene.started(side) as playing:
            await timed(playing)
            await scene.mock.call("first_streams", count=1)
            colds, warms, ratios = [], [], []
            for _ in range(pairs):
                await scene.mock.call("drop")
                await asyncio.sleep(_SETTLE)
                colds.append(await timed(playing))
                warms.append(await timed(playing))
                ratios.append(colds[-1] / warms[-1])
            await scene.mock.call("first_streams", count=0)
            return {
                "cold / warm": statistics.median(ratios),
                "cold": statistics.median(colds),
                "warm": statistics.median(warms),
            }

    return measure


async def webpush(stage: Stage) -> Measure:
    """One NMSG for each of as many browsers of one push service as devices of APNs, in turns."""
    owners, bursts = stage.size(3000, 50), stage.size(3, 1)
    scene = await stage.scene(2 * owners, web_push=True)

    def new() -> list[devices.Device]:
        return [*devices.new_devices(owners, "ed25519"), *devices.new_browsers(owners, scene.origin)]

    await scene.populate(stage.sides, new)

    async def measure(side: Side) -> Mapping[str, float]:
        async with scene.started(side) as playing:
            await playing.burst(range(2 * owners))
            apns = web_push = 0.0
            for _ in range(bursts):
                apns += (await playing.burst(range(owners))).measured.seconds
                web_push += (await playing.burst(range(owners, 2 * owners))).measured.seconds
            return {
                "Web Push / APNs": apns / web_push,
                "Web Push": owners * bursts / web_push,
                "APNs": owners * bursts / apns,
            }

    return measure


# --- commands, subscribing, memory


async def commands(stage: Stage) -> Measure:
    """Commands of devices, pipelined, on a new database each time."""
    owners, each = stage.size(6000, 50), 2
    scene = await stage.scene(owners * each)

    async def measure(side: Side) -> Mapping[str, float]:
        new = devices.new_devices(owners, "ed25519")
        async with scene.clients(side, await scene.new_folder(side)) as (_, connections):
            seconds = await scene.enrol(connections, new)
            subscribed, _ = await devices.subscribe(
                connections, new, scene.servers, range(owners * each), window=WINDOW
            )
            return {"TNEW, code, TVFY": owners / seconds, "SNEW": subscribed.rate}

    return measure


async def storm(stage: Stage) -> Measure:
    """All queues, with a key each, are subscribed after a restart, and again after all servers dropped."""
    owners, each, servers = stage.size(2000, 20), 20, stage.size(20, 4)
    times, count = stage.size(3, 1), owners * each
    scene = await _populated(stage, owners, each, servers)

    async def measure(side: Side) -> Mapping[str, float]:
        folder, _ = scene.registered[side.name]
        restarts, storms, cpu = [], [], 0.0
        for _ in range(times):
            before = time.monotonic()
            await scene.load.call("drop")  # so that the first NSUB is one of this start
            async with running(side, folder) as relay:
                restarts.append(await _subscribed(scene, before))
                before, used = await scene.load.call("drop"), relay.cpu()
                storms.append(await _subscribed(scene, before))
                cpu += relay.cpu() - used
        return {
            "restart": count / statistics.median(restarts),
            "storm": count / statistics.median(storms),
            "CPU of the storm, each": cpu / times / count * 1e6,
        }

    return measure


async def _subscribed(scene: Scene, since: float) -> float:
    """Seconds from the first NSUB to the last. Raises TimeoutError."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            stats = await scene.load.call("stats")
            if stats["complete_at"] is not None and stats["complete_at"] > since:
                return float(stats["complete_at"] - stats["first_at"])
            await asyncio.sleep(_POLL)


async def memory(stage: Stage) -> Measure:
    """Of a relay that has nothing to do."""
    scene = await stage.scene()

    async def measure(side: Side) -> Mapping[str, float]:
        folder = await scene.new_folder(side)
        async with running(side, folder):
            pass  # code is compiled, the database made
        async with running(side, folder) as relay:
            seconds = time.monotonic() - relay.started
            await asyncio.sleep(_IDLE)
            now = relay.memory()
            return {"RssAnon": now.anon / MIB, "RSS": now.rss / MIB, "start": seconds}

    return measure


BENCHES: Final[Mapping[str, Bench]] = {
    "pushes": Bench(
        "bursts, by what APNs takes",
        (*(_faster(_at(ms)) for ms in _LATENCIES), Figure("CPU a push", "ms")),
        pushes,
    ),
    "rate": Bench(
        "2,000 NMSGs a second",
        (
            Figure("CPU an NMSG", "ms", 0.6),
            Figure("NMSG to push, p99", "ms", 1.25),
            Figure("NMSG to push, p50", "ms"),
            Figure("pushes not timed"),
        ),
        rate,
    ),
    "queues": Bench(
        "20 queues of each device at once",
        (Figure("CPU an NMSG", "ms", 0.6), Figure("pushes a device", goal=4.5, of="new"), Figure("NMSGs", "/s")),
        queues,
    ),
    "commands": Bench("commands of devices", (_faster("TNEW, code, TVFY"), _faster("SNEW")), commands),
    "storm": Bench(
        "subscriptions with a key each",
        (_faster("restart"), _faster("storm"), Figure("CPU of the storm, each", "µs")),
        storm,
    ),
    "cold": Bench(
        "first burst of a connection with one stream at first",
        (Figure("cold / warm", goal=1.2, of="new"), Figure("cold", "s"), Figure("warm", "s")),
        cold,
    ),
    "webpush": Bench(
        "one Web Push origin beside APNs",
        (Figure("Web Push / APNs", goal=0.7, at_least=True, of="new"), Figure("Web Push", "/s"), Figure("APNs", "/s")),
        webpush,
    ),
    "memory": Bench("idle", (Figure("RssAnon", "MiB", 1.05), Figure("RSS", "MiB"), Figure("start", "s")), memory),
}
