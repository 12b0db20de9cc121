"""Before much goes wrong in a world of several nodes: one thing at a time, exactly where it hurts, and all is quiet.

What is lost then is made good, nothing is stuck, and nobody but who has to lets go of anything.
"""

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from ntf_server.store.redis.url import Kind
from sim.nodes import MADE_GOOD, NodeWorld
from sim.relay import SimRelay
from sim.valkey.network import Link

_CALM: Final = 10.0  # seconds in which nothing happens
_COUNT: Final = 3
_ECHO: Final = 35.0  # seconds in which everybody is reached
_CUT: Final = 12.0  # seconds that a node is cut off until others have what it had
_BACK: Final = 20.0  # seconds until a node that comes back has its share
_HANDING: Final = ("notify", "take", "record")  # scripts
_ASKING: Final = ("owners", "owners", "owners", "peek", "record")
_SOON: Final = 10.0  # seconds in which it happens


class Trials:
    """Some of them, by the seed. Their randomness is their own."""

    def __init__(self, world: NodeWorld) -> None:
        self.world = world
        self.rng = Random(world.seed * 16 + 9)

    async def run(self) -> None:
        """One after the other."""
        kinds: list[Callable[[], None]] = [self._lose, self._lose_again, self._no_answer, self._kill, self._leave]
        chosen = self.rng.sample(kinds, _COUNT)
        if self.world.redis.kind is Kind.SENTINEL:
            chosen[-1] = self._stall
        self.world.phones_look = False
        for kind in chosen:
            await self._try(kind)
        self.world.phones_look = True

    async def _try(self, kind: Callable[[], None]) -> None:
        world = self.world
        acquired = world.acquired
        await asyncio.sleep(_CALM)
        if world.acquired != acquired:
            world.trace.violated("a server got another node, though all was well")
        slowness = {host: host.slowness for host in world.hosts.values()}
        for host in slowness:
            host.slowness = 3.0  # so that pushes are under way when it happens
        world.trace.note("trial:", kind.__name__)
        kind()
        self._notify_all()
        await asyncio.sleep(_SOON + MADE_GOOD)
        world.redis.when_run_no_more()
        self._check_owed()
        for host, seconds in slowness.items():
            host.slowness = seconds
        self._notify_all()
        await asyncio.sleep(_ECHO)
        self._check_owed()
        while world.away:
            number = world.away.pop()
            world.start_relay(number)
            await asyncio.sleep(_BACK)

    def _check_owed(self) -> None:
        world, now = self.world, self.world.loop.time()
        for queue, waiting in world.owed.items():
            if now - waiting.since > _ECHO - _SOON:
                world.trace.violated(queue, waiting.newest, "never reached", world.owners[queue])

    def _notify_all(self) -> None:
        for queue in self.world.by_notifier.values():
            queue.server.notify(queue)

    def _when_run(self, scripts: Sequence[str], then: Callable[[SimRelay], None]) -> None:
        """What is to become of the node for which one of these is run."""

        def ran(link: Link) -> None:
            nodes = [relay for relay in self.world.relays.values() if relay.life is link.life and relay.ready]
            if nodes and len(self.world.relays) > 1:
                then(nodes[0])

        self.world.redis.when_run(self.rng.choice(scripts), ran, self._skip())

    def _skip(self) -> int:
        return self.rng.choice([0, 0, 0, 1, 2, 4])

    # --- what happens

    def _lose(self, script: str = "") -> None:
        """Redis loses what it wrote last, and is back so soon that nothing fails."""
        self.world.weaken("", 10.0)
        script, then = script or self.rng.choice(_HANDING), self.rng.choice([0.0, 0.05, 0.3])
        self.world.redis.lose(script, then, self.rng.uniform(0.1, 0.5), self._skip())

    def _lose_again(self) -> None:
        """The same, of tokens that have more to be pushed, and were handed out once more."""
        self.world.loop.in_world(1.5, self._notify_all)
        self.world.loop.in_world(2.5, self._lose, "take")

    def _stall(self) -> None:
        """Replicas get nothing, and one of them takes over."""
        self.world.weaken("", 10.0)
        self.world.redis.stall(self.rng.uniform(0.5, 5.0), 5.0)

    def _no_answer(self) -> None:
        """A script is run, and its answer is lost."""
        script = self.rng.choice(_HANDING)
        self.world.redis.when_run(script, lambda link: link.lose_answers(), self._skip())

    def _kill(self) -> None:
        """A node dies with pushes under way."""
        in_world = self.world.loop.in_world
        self._when_run(_HANDING, lambda node: in_world(self.rng.uniform(0.0, 0.5), node.life.die))

    def _leave(self) -> None:
        """A node is cut off, then its machine dies; what it had sent arrives when others have what it had."""
        world = self.world

        def cut(node: SimRelay) -> None:
            world.weaken(node.life.name, _CUT)
            world.away.add(node.number)
            # The answer is on its way, and what the node asks for next stays on its own.
            world.loop.in_world(0, world.redis.network.cut, f"node{node.number}", world.loop.time() + _CUT)
            world.loop.in_world(_CUT / 2, node.life.die)

        self._when_run(_ASKING, cut)
