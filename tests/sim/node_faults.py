"""What goes wrong with Redis, with the way to it, and with nodes, in a world that has several."""

from collections.abc import Callable
from random import Random
from typing import Final

from sim.nodes import NodeWorld
from sim.relay import SimRelay
from sim.valkey.slots import slot_of

_LOST: Final = ("record", "record", "take", "notify", "acquire", "hold", "confirm", "recover", "put_queues")
_STAYS: Final = 0.2  # chance that a primary is started again before another one is elected
_STEPS: Final = (-3600.0, -30.0, 30.0, 3600.0)  # seconds by which somebody sets the servers' clock


class NodeFaults:
    """Plans faults between two times, and ends them all at the end. Its randomness is its own."""

    def __init__(self, world: NodeWorld, begin: float, end: float) -> None:
        self.world = world
        self.rng = Random(world.seed * 16 + 5)
        kinds: list[tuple[Callable[[], None], int]] = [
            (self.stand_still, 4),
            (self.cut_off, 4),
            (self.kill, 3),
            (self.leave, 2),
            (self.redis_dies, 3),
            (self.redis_loses, 3),
            (self.replicas_stall, 1),
            (self.redis_stands_still, 2),
            (self.flaky, 3),
            (self.scripts_are_gone, 1),
            (self.kill_all, 1),
            (self.restart_all, 1),
            (self.set_clock, 1),
        ]
        if world.redis.cluster is not None:
            kinds += [(self.slots_move, 5), (self.slot_of_nobody, 2), (self.cut_off_from_one, 3)]
        weighted = [fault for fault, weight in kinds for _ in range(weight)]
        for _ in range(self.rng.randint(5, 12)):
            self._later(self.rng.uniform(begin, end - 120) - world.loop.time(), self.rng.choice(weighted))
        self._later(end - world.loop.time(), self.heal)

    def _later(self, seconds: float, what: Callable[..., object], *args: object) -> None:
        self.world.loop.in_world(seconds, what, *args)

    def heal(self) -> None:
        """All is well from now on."""
        self.world.redis.heal()
        if self.world.server_clock.offset:
            self._step(-self.world.server_clock.offset)
        for number in list(self.world.away):
            self._come_back(number)

    def _node(self) -> SimRelay | None:
        ready = [r for r in self.world.relays.values() if r.ready and not r.life.stands_still]
        return self.rng.choice(ready) if ready else None

    def _busy(self) -> None:
        """Messages come while it happens."""
        queues = list(self.world.by_notifier.values())
        for queue in self.rng.sample(queues, min(len(queues), 8)):
            self._later(self.rng.uniform(-0.2, 1.0) + 0.2, queue.server.notify, queue)

    # --- nodes

    def stand_still(self) -> None:
        """SIGSTOP, mostly for longer than every lease, then CONT: a zombie."""
        relay, seconds = self._node(), self.rng.choice([3.0, 8.0, 15.0, 60.0]) * self.rng.uniform(0.8, 1.2)
        if relay is None:
            return
        self._busy()
        self.world.trace.fault("node:stands_still", relay.life.name, f"{seconds:.0f}s")
        self.world.weaken(relay.life.name, seconds)
        self.world.expect_taken_over(relay)
        relay.life.stand_still()
        self._later(seconds, relay.life.go_on, self.world.loop)

    def cut_off(self) -> None:
        """Nothing goes between one node and Redis; SMP servers and providers it reaches."""
        relay, seconds = self._node(), self.rng.choice([1.0, 5.0, 12.0, 40.0]) * self.rng.uniform(0.8, 1.2)
        if relay is None:
            return
        self._busy()
        self.world.trace.fault("node:cut_off", relay.life.name, f"{seconds:.0f}s")
        self.world.weaken(relay.life.name, seconds)
        self.world.redis.network.cut(f"node{relay.number}", self.world.loop.time() + seconds)
        if seconds > 12:
            self.world.expect_taken_over(relay)

    def kill(self) -> None:
        """With pushes under way."""
        relay = self._node()
        if relay is not None:
            self._busy()
            self._later(self.rng.uniform(0.0, 2.0), self._kill, relay)

    def _kill(self, relay: SimRelay) -> None:
        self.world.trace.fault("node:killed", relay.life.name)
        relay.life.die()

    def leave(self) -> None:
        """The operator stops a node in order, and starts it again some time."""
        relay = self._node()
        if relay is None or len(self.world.relays) < 2:
            return
        self.world.trace.fault("node:leaves", relay.life.name)
        self.world.away.add(relay.number)
        relay.stop()
        self._later(self.rng.uniform(40, 200), self._come_back, relay.number)

    def _come_back(self, number: int) -> None:
        if number in self.world.away:
            self.world.away.remove(number)
            if number not in self.world.relays:
                self.world.trace.fault("node:joins", number)
                self.world.start_relay(number)

    def kill_all(self) -> None:
        """The power fails, of all nodes."""
        self.world.trace.fault("node:all_killed")
        for relay in list(self.world.relays.values()):
            relay.life.die()

    def restart_all(self) -> None:
        """One after the other, as an update does."""
        self.world.trace.fault("node:all_restart")
        for i, relay in enumerate(list(self.world.relays.values())):
            self._later(i * self.rng.uniform(0.0, 8.0), relay.stop)

    # --- Redis

    def redis_dies(self) -> None:
        """Its process ends; what it wrote last may be lost."""
        if self.world.redis.is_whole:
            self._busy()
            away = self.rng.uniform(1.0, 8.0)
            if self.rng.random() < 0.5:  # what sessions begin with is lost
                self.rng.choice(self.world.servers).drop_all()
                self.world.trace.fault("smp:drop")
            self.world.weaken("", away + 8.0)
            self.world.disk.last(away + 8.0)
            group, stays = self.world.redis.a_group(), self.rng.random() < _STAYS
            lag, then = self.rng.choice([0.0, 0.1, 2.0]), self.rng.uniform(0.1, 3.0)
            self._later(then, lambda: group.crash(lag, away, stays=stays))

    def redis_loses(self) -> None:
        """What a script writes from now on, which is answered; it is away for a moment only, and nothing fails."""
        if self.world.redis.is_whole:
            self._busy()
            self.world.weaken("", 10.0)
            self.world.disk.last(8.0)
            script, then = self.rng.choice(_LOST), self.rng.choice([0.0, 0.05, 0.3])
            self.world.redis.lose(script, then, self.rng.uniform(0.1, 1.0), self.rng.randint(0, 3))

    def replicas_stall(self) -> None:
        """Replicas get nothing for a while; then one of them takes over."""
        self._busy()
        seconds = self.rng.uniform(0.5, 5.0)
        self.world.weaken("", seconds + 8.0)
        self.world.disk.last(seconds + 8.0)
        self.world.redis.a_group().stall(seconds, self.rng.uniform(1.0, 8.0))

    def redis_stands_still(self) -> None:
        """It goes on when another one has taken over."""
        if self.world.redis.is_whole:
            self._busy()
            away = self.rng.choice([1.0, 4.0, 15.0])
            self.world.weaken("", away + 8.0)
            self.world.disk.last(away + 8.0)
            group, lag = self.world.redis.a_group(), self.rng.choice([0.0, 0.5])
            self._later(self.rng.uniform(0.1, 1.0), group.freeze, lag, away)

    def flaky(self) -> None:
        """Requests and answers are lost, late, or cut off in the middle."""
        seconds = self.rng.uniform(5.0, 60.0)
        self._busy()
        self.world.trace.note("the way to Redis is bad for", f"{seconds:.0f}s")
        self.world.redis.network.flaky = self.rng.choice([0.02, 0.1, 0.3])
        self.world.weaken("", seconds + 8.0)
        self.world.disk.last(seconds + 8.0)
        self._later(seconds, setattr, self.world.redis.network, "flaky", 0.0)

    def scripts_are_gone(self) -> None:
        """SCRIPT FLUSH."""
        self.world.trace.fault("redis:no_scripts")
        self.world.redis.a_group().primary.data.flush_scripts()
        self._busy()

    # --- a cluster

    def slots_move(self) -> None:
        """An operator gives some to another primary, one after another, some of them slowly."""
        names = self.world.names()
        slots = [slot_of(name) for name in self.rng.sample(names, self.rng.randint(1, min(4, len(names))))]
        self._move_next(slots)

    def _move_next(self, slots: list[int]) -> None:
        redis = self.world.redis
        if not slots or redis.cluster is None:
            return
        seconds = self.rng.choice([0.1, 1.0, 3.0, 12.0]) * self.rng.uniform(0.8, 1.2)
        if redis.cluster.move(slots[0], redis.a_group(), seconds, lambda: self._move_next(slots[1:])):
            self._busy()
            self.world.weaken("", seconds)
            self.world.disk.last(seconds)

    def slot_of_nobody(self) -> None:
        """An operator's mistake, which is mended soon."""
        redis, seconds = self.world.redis, self.rng.choice([2.0, 4.0, 15.0])
        if redis.cluster is not None and redis.is_whole:
            self._busy()
            self.world.weaken("", seconds + 2.0)
            self.world.disk.last(seconds + 2.0)
            redis.cluster.unserve(slot_of(self.rng.choice(self.world.names())), seconds)

    def cut_off_from_one(self) -> None:
        """Nothing goes between one node and one primary; the others it reaches."""
        relay, seconds = self._node(), self.rng.choice([1.0, 5.0, 12.0, 40.0]) * self.rng.uniform(0.8, 1.2)
        if relay is None:
            return
        self._busy()
        primary = self.world.redis.a_group().primary
        self.world.trace.fault("node:cut_off_from_one", relay.life.name, primary, f"{seconds:.0f}s")
        self.world.weaken(relay.life.name, seconds)
        self.world.redis.network.cut(f"node{relay.number}", self.world.loop.time() + seconds, primary.name)

    def set_clock(self) -> None:
        """Somebody sets the servers' clock, and later right."""
        clock = self.world.server_clock
        if clock.offset:
            return
        step = self.rng.choice(_STEPS)
        self.world.trace.fault("redis:clock", f"{step:+.0f}")
        self._step(step)
        self.world.weaken("", 30.0)
        self._later(self.rng.uniform(20, 200), self._right_clock)

    def _right_clock(self) -> None:
        clock = self.world.server_clock
        if clock.offset:
            self.world.trace.fault("redis:clock", "right")
            self._step(-clock.offset)
            self.world.weaken("", 30.0)

    def _step(self, seconds: float) -> None:
        """Before nodes see that it was set forward a check may be recorded as of then: the next comes as much later."""
        self.world.server_clock.step(seconds)
        now = self.world.loop.time()
        if seconds > 0:
            self.world.excuses.add("check", now, now + seconds)
