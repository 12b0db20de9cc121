"""Parts of the relay fail by a fault of ours."""

from random import Random
from typing import Final

from sim.world import World

_EVERY: Final = 5  # of so many worlds one has such faults: the others are what they were
_LATE: Final = 5.0  # seconds for which it excuses what is late


class PartFaults:
    """Plans them between two times. Its randomness is its own."""

    def __init__(self, world: World, begin: float, end: float) -> None:
        self._world = world
        self._rng = Random(world.seed * 16 + 11)
        if world.seed % _EVERY == _EVERY - 1:
            for _ in range(self._rng.randint(3, 12)):
                world.loop.in_world(self._rng.uniform(begin, end - 120) - world.loop.time(), self._fail)

    def _fail(self) -> None:
        world = self._world
        ready = [relay for relay in world.relays.values() if relay.ready]
        if ready:
            relay = self._rng.choice(ready)
            name = self._rng.choice(sorted(relay.parts))
            relay.parts[name].is_to_fail = True
            world.trace.fault("relay:part_fails")
            world.trace.note(relay.life.name, "is to fail:", name)
            world.excuses.add("relay", world.loop.time(), world.loop.time() + _LATE)
