"""Before much goes wrong in a world of several nodes: one thing at a time, exactly where it hurts, and all is quiet.

What is lost then is made good, nothing is stuck, and nobody but who has to lets go of anything.
"""

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from ntf_server.store.redis.node import LEASE
from ntf_server.store.redis.url import Kind
from sim.nodes import MADE_GOOD, NodeWorld
from sim.relay import SimRelay
from sim.valkey.network import Link
from sim.valkey.slots import slot_of

_CALM: Final = 10.0  # seconds in which nothing happens
_COUNT: Final = 3
_ECHO: Final = 35.0  # seconds in which everybody is reached
_CUT: Final = 12.0  # seconds that a node is cut off until others have what it had
_BACK: Final = 20.0  # seconds until a node that comes back has its share
_HANDING: Final = ("notify", "take", "record")  # scripts
_ASKING: Final = ("owners", "owners", "owners", "peek", "record")
_SLOWLY: Final = 9.0  # seconds: longer than anything is tried for
_LATE: Final = 9.0  # seconds until what is on its way arrives, and others are at it
_AHEAD: Final = 1000  # calls
_SOON: Final = 10.0  # seconds in which it happens


class Trials:
    """Some of them, by the seed. Their randomness is their own."""

    def __init__(self, world: NodeWorld) -> None:
        self.world = world
        self.rng = Random(world.seed * 16 + 9)
        self._moved: dict[int, float] = {}  # slots, and when they have

    async def run(self) -> None:
        """One after the other."""
        kinds: list[Callable[[], None]] = [self._lose, self._lose_again, self._no_answer, self._kill, self._leave]
        kinds.append(self._late_record)
        chosen = self.rng.sample(kinds, _COUNT)
        if self.world.redis.kind is not Kind.ALONE:
            chosen[-1] = self._stall
        if self.world.redis.cluster is not None:
            chosen[0] = self._slots_move
            chosen[1] = self.rng.choice([self._late_record, self._slots_move_slowly])
        self.world.phones_look = False
        for kind in chosen:
            await self._try(kind)
        self.world.phones_look = True

    async def _try(self, kind: Callable[[], None]) -> None:
        world = self.world
        acquired, failures = world.acquired, world.failures
        await asyncio.sleep(_CALM)
        if world.acquired != acquired:
            world.trace.violated("a server got another node, though all was well")
        slowness = {host: host.slowness for host in world.hosts.values()}
        self._answer_in(3.0)  # so that pushes are under way when it happens
        world.trace.note("trial:", kind.__name__)
        kind()
        self._notify_all()
        await asyncio.sleep(_SOON + MADE_GOOD)
        world.redis.when_run_no_more()
        self._check_owed()
        if kind in {self._slots_move, self._slots_move_slowly} and world.failures != failures:
            world.trace.violated("the store failed, though all that happened is that slots moved")
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

    def _late_record(self) -> None:
        """A node is cut off before it tells what came of its pushes, and dies; that arrives when another one pushes the
        same, handed out by a call of the same number: it counts no more.
        """
        world = self.world
        relay = self.rng.choice([relay for relay in world.relays.values() if relay.ready])
        if len(world.relays) < 2:
            return
        relay.store._node.handed.calls += _AHEAD  # no other has such a number already
        self._answer_in(0.2)

        def ran(link: Link) -> None:
            if link.life is not relay.life:
                world.redis.when_run(script, ran)
                return
            number, now = relay.store._node.handed.calls, world.loop.time()
            world.weaken(relay.life.name, _CUT)
            world.away.add(relay.number)
            in_world = world.loop.in_world
            in_world(0.05, world.redis.network.cut, f"node{relay.number}", now + _LATE)
            in_world(0.5, self._answer_in, 2 * _LATE)
            in_world(LEASE / 2, self._count_from, number - self.rng.randint(0, 2))
            in_world(LEASE, relay.life.die)
            in_world(_LATE - 0.5, world.redis.when_run, "record", came)
            in_world(_LATE + 0.5, self._notify_all)
            in_world(_LATE + 2.0, self._answer_in, 1.0)

        def came(link: Link) -> None:
            if link.life is relay.life and world.redis.data_of(link).wrote:
                world.trace.violated("what", relay.life.name, "told of its pushes counted, though others have them")
            world.redis.when_run("record", came)

        def begin() -> None:
            world.redis.when_run(script, ran)
            for device in world.devices:  # one each, so that no push has more behind it
                for queue in list(device.queues.values())[:1]:
                    queue.server.notify(queue)

        script = self.rng.choice(["take", "notify"])
        world.loop.in_world(2.0, begin)

    def _answer_in(self, seconds: float) -> None:
        """All providers do."""
        for host in self.world.hosts.values():
            host.slowness = seconds

    def _count_from(self, number: int) -> None:
        """All nodes that do not count further already."""
        for relay in self.world.relays.values():
            if relay.ready and relay.store._node.handed.calls < number:
                relay.store._node.handed.calls = number

    def _slots_move(self) -> None:
        """From primary to primary, while all is in use: it waits for a moment, and nothing fails."""
        slots = [slot_of(name) for name in self.world.names()]
        for at in (0.0, 3.0, 6.0, 9.0):
            self.world.loop.in_world(at + self.rng.uniform(0.1, 1.5), self._move, self.rng.choice(slots))
            self.world.loop.in_world(at + self.rng.uniform(0.1, 1.5), self._move_what_is_used)

    def _move_what_is_used(self) -> None:
        """A slot of which something was just asked: what follows meets it half here, half there."""
        if self.rng.random() < 0.5:
            self._when_used(self.rng.choice(_HANDING), b"", lambda key: self._move(slot_of(key)))
        else:  # it is handed out to whom it is due to
            self._when_used(
                "notify", b"", lambda key: self._when_used("peek", key, lambda key: self._move(slot_of(key)))
            )
        for device in self.world.devices:
            if self.rng.random() < 0.4:
                for queue in device.queues.values():
                    queue.server.notify(queue)

    def _when_used(self, script: str, key: bytes, then: Callable[[bytes], None]) -> None:
        """Once it is run, with this key or any."""
        redis = self.world.redis

        def ran(link: Link) -> None:
            used = redis.data_of(link).ran_on
            if key in {b"", used}:
                then(used)
            else:
                redis.when_run(script, ran)

        redis.when_run(script, ran)

    def _slots_move_slowly(self) -> None:
        """Each with one key: it is where it is, and is asked for there."""
        for slot in {slot_of(name): None for name in self.world.indexes()}:
            self._move(slot, _SLOWLY)
        for device in self.world.devices:
            for _ in range(2):
                self.world.loop.in_world(self.rng.uniform(1.0, _SLOWLY), self.world.phones.look, device)

    def _move(self, slot: int, seconds: float = 0.0) -> None:
        """If it has not moved a moment ago: who waits for it looks a few times a second."""
        redis, now = self.world.redis, self.world.loop.time()
        assert redis.cluster is not None
        if now < self._moved.get(slot, 0.0) + 1.0:
            return
        seconds = seconds or self.rng.choice([0.2, 1.0, 3.5])
        self._moved[slot] = now + seconds
        others = [group for group in redis.groups if group is not redis.cluster.owner(slot)]
        redis.cluster.move(slot, self.rng.choice(others), seconds)

    def _stall(self) -> None:
        """Replicas get nothing, and one of them takes over."""
        self.world.weaken("", 10.0)
        self.world.redis.a_group().stall(self.rng.uniform(0.5, 5.0), 5.0)

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
