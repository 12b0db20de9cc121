"""What a push costs with one relay on a Redis, and with two and three; and what relays cost that have nothing to do.

All run on the same cores, so that a rate of several relays says nothing of machines of their own: what each of them,
and Redis, spends on a push does.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import devices
import redis_server
from bursts import Bursts, Measured, Target
from report import Row, say, show
from scene import TIMEOUT, Scene, Stage
from subscriptions import yardstick
from wire_relay import CONFIG_FILE, Folder, Running, Side, running

NODES: Final = (1, 2, 3)
REDIS_GOAL: Final = 25e-6 * 59_000  # seconds of Redis for a push, times the signatures a second of the core
IDLE_GOAL: Final = 2.0  # % of a core, of a relay and Redis together
_SERVERS: Final = 24
_SHARED: Final = 12.0  # seconds after which each of several relays has its share
_IDLE: Final = 20.0


async def measure(stage: Stage, programs: Path, server: redis_server.Server) -> bool:
    """Both, for each number of relays; whether goals are met."""
    owners, bursts = stage.size(3000, 60), stage.size(5, 1)
    side = Side("node0", programs, (_store(server, 0),))
    scene = await stage.scene(owners, _SERVERS)
    await scene.populate([side], partial(devices.new_devices, owners, "ed25519"))
    signs = yardstick()
    say(f"this core makes {signs:,.0f} signatures a second")
    met = True
    for count in NODES:
        async with _relays(scene, side, server, count) as relays:
            await asyncio.sleep(_SHARED if count > 1 else 1)
            idle = await _idle(relays, server, stage.size(round(_IDLE), 1), signs)
            work = await _bursts(scene, relays, server, bursts, signs)
        show(f"{count} relay{'s' if count > 1 else ''} on one Redis, {owners:,} devices", [*idle, *work])
        met = met and all(row.met for row in (*idle, *work))
    return met


def _store(server: redis_server.Server, number: int) -> str:
    return f'[store]\nurl = "{server.url}"\nnode = "node{number}"\n'


@asynccontextmanager
async def _relays(
    scene: Scene, side: Side, server: redis_server.Server, count: int
) -> AsyncIterator[Sequence[Running]]:
    """So many of one identity, started together."""
    first, _ = scene.registered[side.name]
    folders = [first, *(_another(scene, first, server, number) for number in range(1, count))]
    await scene.mock.call("set")
    async with AsyncExitStack() as stack:
        starting = [stack.enter_async_context(running(replace(side, name=f.path.parent.name), f)) for f in folders]
        relays = [await one for one in starting]
        await devices.until_subscribed(scene.load, scene.queues, TIMEOUT)
        yield relays


def _another(scene: Scene, first: Folder, server: redis_server.Server, number: int) -> Folder:
    path = scene.folder / f"node{number}" / "relay"
    if not path.exists():
        shutil.copytree(first.path, path, ignore=shutil.ignore_patterns("*.sock", "log"))
        config = path / CONFIG_FILE
        config.write_text(config.read_text().replace(_store(server, 0), _store(server, number)))
    return Folder(path, first.key_hash)


async def _idle(relays: Sequence[Running], server: redis_server.Server, seconds: float, signs: float) -> list[Row]:
    before = sum(relay.cpu() for relay in relays), server.cpu()
    await asyncio.sleep(seconds)
    of_relays = (sum(relay.cpu() for relay in relays) - before[0]) / seconds * 100
    of_redis = (server.cpu() - before[1]) / seconds * 100
    goal = IDLE_GOAL * 59_000 / signs
    return [
        Row("idle: CPU of each relay, of one core", of_relays / len(relays), "%"),
        Row("idle: CPU of Redis", of_redis, "%"),
        Row("idle: a relay and Redis", of_relays / len(relays) + of_redis, "%", goal),
    ]


async def _bursts(
    scene: Scene, relays: Sequence[Running], server: redis_server.Server, count: int, signs: float
) -> list[Row]:
    [(name, (_, owners))] = scene.registered.items()
    target, bursts = Target(name, [d.path for d in owners]), Bursts(scene.load, scene.mock, TIMEOUT)
    await bursts.burst(target, range(scene.queues), Measured())  # connections are made, code is warm
    await scene.mock.call("set", latency=0.05)
    measured, cpu, of_redis = Measured(), sum(relay.cpu() for relay in relays), server.cpu()
    calls_before, micros_before = server.calls()
    for _ in range(count):
        await bursts.burst(target, range(scene.queues), measured)
    cpu, of_redis = sum(relay.cpu() for relay in relays) - cpu, server.cpu() - of_redis
    calls_after, micros_after = server.calls()
    calls, micros, pushes = calls_after - calls_before, micros_after - micros_before, measured.pushes
    return [
        Row("pushes a second, all on the same cores", pushes / measured.seconds, "/s"),
        Row("CPU a push, relays", cpu / pushes * 1e6, "us"),
        Row("CPU a push, Redis", of_redis / pushes * 1e6, "us", REDIS_GOAL / signs * 1e6),
        Row("  of it in scripts", micros / pushes, "us"),
        Row("scripts a push", calls / pushes, ""),
        Row("pushes more than NMSGs", pushes - measured.notified, "", 0),
    ]
