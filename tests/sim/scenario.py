"""One run, from a seed: phones register, messages come, things go wrong; then all is well, and promises are kept."""

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sim.devices import SILENT
from sim.faults import Faults
from sim.loop import virtual_loop
from sim.node_faults import NodeFaults
from sim.nodes import NodeWorld, many_nodes
from sim.part_faults import PartFaults
from sim.promises import check_at_end, check_owed, check_periods
from sim.services import ServiceFaults
from sim.trials import Trials
from sim.world import World, deterministic
from smp_bridge.ntf import Provider

MIN_PUSHES: Final = 200
_SETTLED: Final = 90.0  # seconds until the first fault
_DRAINED: Final = 2700.0  # seconds that a healed world has until everything is where it belongs
_TOP_UP: Final = 3000  # messages more, until there were pushes enough
_ECHO: Final = 120.0


@dataclass(frozen=True)
class Run:
    """What a run came to."""

    seed: int
    pushes: int
    violations: list[str]
    faults: Counter[str]
    digest: str
    lines: list[str]


class Store(StrEnum):
    """On which store a world's relay is. ANY: the seed says."""

    ANY = "any"
    REDIS = "redis"
    SQLITE = "sqlite"

    def of(self, seed: int) -> "Store":
        """Of this seed: one in three is on Redis."""
        if self is not Store.ANY:
            return self
        return Store.REDIS if seed % 3 == 1 else Store.SQLITE


def run(seed: int, *, store: Store = Store.ANY, keep: bool = False) -> Run:
    """The same for the same seed and store. `keep`: the trace too."""
    with virtual_loop() as loop, contextlib.ExitStack() as stack:
        if store.of(seed) is Store.REDIS:
            world: World = NodeWorld(seed, loop, keep=keep)
            stack.enter_context(many_nodes(world))
        else:
            world = World(seed, loop, keep=keep)
        with deterministic(world):
            try:
                loop.run_until_complete(_live(world))
            except Exception as e:
                world.trace.violated("the run ended:", repr(e))
        for error in loop.errors:
            world.trace.violated("asyncio:", error)
        trace = world.trace
        return Run(seed, world.pushes, trace.violations, trace.faults, trace.digest(), trace.lines)


async def _live(world: World) -> None:
    loop, rng = world.loop, world.rng
    _populate(world)
    world.begin()
    await asyncio.sleep(_SETTLED)
    if isinstance(world, NodeWorld):
        await Trials(world).run()
        if world.trace.violations:
            return
    duration = rng.uniform(900, 1800) * world.pace
    Faults(world, loop.time(), loop.time() + duration)
    ServiceFaults(world, loop.time(), loop.time() + duration)
    PartFaults(world, loop.time(), loop.time() + duration)
    if isinstance(world, NodeWorld):
        NodeFaults(world, loop.time(), loop.time() + duration)
    else:  # whose many servers would take most of the time of several nodes, and are no matter of the store
        world.strangers.plan(loop.time(), loop.time() + duration)
    _send(world, duration)
    await asyncio.sleep(duration + 1)
    for _ in range(_TOP_UP):
        if world.pushes >= MIN_PUSHES or world.trace.violations:
            break
        _notify_one(world)
        await asyncio.sleep(1)
    for device in world.devices:
        loop.in_world(rng.uniform(400, 500), world.phones.look, device)
    await asyncio.sleep(max(_DRAINED * world.pace, world.excuses.over("clock") - loop.time()))
    check_owed(world)
    check_periods(world)
    await _echo(world)
    await check_at_end(world)


def _populate(world: World) -> None:
    rng = world.rng
    web = [name for name, host in world.hosts.items() if host.kind == "web" and name != SILENT]
    most = rng.choice(list(world.setup.places))
    for _ in range(rng.randint(8, 14)):
        provider = rng.choice([most, most, most, Provider.APNS, Provider.FCM, Provider.WEB_PUSH])
        device = world.add_device(provider, rng.choice(web) if provider is Provider.WEB_PUSH else "")
        device.period = 20 if rng.random() < 0.4 else 0
        world.loop.in_world(rng.uniform(1, 30), world.phones.register, device)


def _send(world: World, duration: float) -> None:
    """Messages for phones, some alone and some together."""
    rng = world.rng
    for _ in range(rng.randint(120, 170)):
        world.loop.in_world(rng.uniform(0, duration), _notify_one, world)
    for _ in range(rng.randint(1, 4)):
        when = rng.uniform(0, duration)
        for _ in range(rng.randint(5, 30)):
            world.loop.in_world(when, _notify_one, world)


def _notify_one(world: World) -> None:
    queue = world.rng.choice(list(world.by_notifier.values()))
    queue.server.notify(queue)


async def _echo(world: World) -> None:
    """Each queue gets one more: is everybody reached, at once?"""
    for queue in world.by_notifier.values():
        queue.server.notify(queue)
    await asyncio.sleep(_ECHO)
