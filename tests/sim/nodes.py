"""A world with several nodes of the relay on one Redis: who pushes to whom, who speaks for which SMP server."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final
from unittest import mock

from ntf_server.observe.metrics import Metrics
from ntf_server.store.clock import Clock
from ntf_server.store.memory import Times
from ntf_server.store.records import Notification, Notified
from ntf_server.store.redis import due, engine, sessions
from ntf_server.store.redis.database import Database
from ntf_server.store.redis.durability import Durability
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.names import Names, server_id
from ntf_server.store.redis.node import LEASE
from ntf_server.store.redis.url import Kind
from sim.clock import WallClock
from sim.devices import Device
from sim.http import Request
from sim.loop import Life, VirtualLoop
from sim.phones import Phones
from sim.relay import SimRelay
from sim.smp import SimQueue, SimServer
from sim.store import MASTER_KEY, WatchedStore
from sim.valkey.deployment import Deployment
from sim.valkey.group import Group
from sim.valkey.slots import slot_of
from sim.world import World, stored
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import TokenStatus

SHARDS: Final = 4  # few, as each costs time in each look
BUCKETS: Final = 3
NAMES: Final = Names("ntf", SHARDS, BUCKETS)
POLL: Final = 1.0  # seconds between looks, for the same reason
TAKEN_OVER: Final = LEASE + 5.0  # seconds in which what a node had is another's
_TWO_SESSIONS: Final = LEASE + 0.5  # seconds that two nodes may have sessions with one server
MADE_GOOD: Final = 45.0  # seconds in which a device is woken whose notification was lost
_LOST_EVERY: Final = 60.0  # seconds between two such pushes, which are an hour apart otherwise
_LATE: Final = 25.0  # seconds that a trouble of Redis excuses after its end
_WEAK: Final = 3.0  # seconds without Redis after which a lease may end before a push does
_TROUBLES: Final = ("smp:", "redis:", "node:", "relay:", "service:", "phone:", "stranger:")


class RedisTrouble:
    """A bad time of Redis, in the place of the disk that SQLite has."""

    TROUBLES = ("busy", "full", "slow")
    connection = None

    def __init__(self, redis: Deployment, weaken: Callable[[str, float], None]) -> None:
        self.redis = redis
        self._weaken = weaken
        self.loop = redis.loop
        self.rng = redis.rng
        self.trace = redis.trace
        self.trouble = ""
        self.until = 0.0

    def begin(self, trouble: str, seconds: float) -> None:
        """It answers late, or with errors that pass."""
        self.trouble = trouble
        self.last(seconds)
        self._weaken("", seconds)  # no lease is renewed meanwhile
        self.trace.fault(f"redis:{trouble}")
        primary = self.redis.a_group().primary
        if trouble == "slow":
            self.redis.network.slowness = self.rng.uniform(0.05, 0.6)
        elif trouble == "full":
            primary.data.full = True
        elif not primary.trouble:
            primary.trouble = self.rng.choice(["busy", "misconf", "noreplicas"])
        self.loop.in_world(seconds, self.mend)

    def last(self, seconds: float) -> None:
        """Whatever it is, it is over after that."""
        self.until = max(self.until, self.loop.time() + seconds)

    def mend(self) -> None:
        """It is over."""
        self.redis.heal()

    def was_in_trouble(self, seconds: float, *_: str) -> bool:
        """Lately."""
        return self.loop.time() < self.until + seconds


class WatchedNode(WatchedStore):
    """What is asked of Redis may take as long as its bounds say."""

    def __init__(self, store: RedisStore, world: "NodeWorld") -> None:
        super().__init__(store, world.disk, world.on_stored)
        self._world = world

    def gave(self, name: str, args: Sequence[Any], result: Any) -> None:
        """See `WatchedStore`."""
        super().gave(name, args, result)
        if name == "acquire" and result is not None:
            self._world.on_acquired(result.server, result.fence)

    def failed(self, name: str) -> None:
        """See `WatchedStore`."""
        super().failed(name)
        self._world.failures += 1

    def took(self, name: str, began: float) -> None:
        """See `WatchedStore`."""


@dataclass(frozen=True)
class RedisEngine:
    """How a node opens the store."""

    world: "NodeWorld"
    number: int

    async def open(self, metrics: Metrics, on_corrupt: Any) -> WatchedNode:
        """Raises StoreUnavailableError."""
        world = self.world
        durability = Durability(replicas=1) if world.waits else Durability()
        database = await Database.open(world.redis.url, durability=durability)
        times = Times(message_ttl=world.setup.message_ttl, verification_ttl=world.setup.verification_ttl)
        try:
            store = await RedisStore.open(
                database,
                master_key=MASTER_KEY,
                times=times,
                metrics=metrics,
                on_corrupt=on_corrupt,
                random=world.rng.randbytes,
                shards=SHARDS,
                buckets=BUCKETS,
                name=f"node{self.number}" if world.named else "",
            )
        except BaseException:
            await database.close()
            raise
        return WatchedNode(store, world)


class NodePhones(Phones):
    """Of devices that know that a Redis may lose what it had taken: they find out, and do it again."""

    def _on_status(self, device: Device, token: Any) -> None:
        world = self.world
        assert isinstance(world, NodeWorld)
        if world.lost and device.verified and world.is_live(device):
            if token is None or token.status in {TokenStatus.REGISTERED, TokenStatus.CONFIRMED}:
                world.trace.fault("redis:lost_registration", device, token and token.status)
                self.forgive(device)
                self.register(device)
                return
            for queue in device.queues.values():
                if not queue.wanted and not queue.deleted and queue.subscription_id:
                    self.subscribe(device, queue)
        super()._on_status(device, token)

    def _on_subscription_status(self, device: Device, queue: SimQueue, status: str) -> None:
        world = self.world
        assert isinstance(world, NodeWorld)
        if world.lost and status == "none" and world.is_live(device) and device.verified and not queue.deleted:
            world.trace.fault("redis:lost_subscription", queue)
            self.subscribe(device, queue)
            return
        super()._on_subscription_status(device, queue, status)


class NodeWorld(World):
    """`count` nodes; `waits`: what is written has to be on a replica before it counts; `named`: nodes have names."""

    def __init__(self, seed: int, loop: VirtualLoop, *, keep: bool = False) -> None:
        super().__init__(seed, loop, keep=keep)
        self.own = own = Random(seed * 16 + 3)
        self.count = own.randint(2, 5)
        self.named = own.random() < 0.5
        kind = own.choice([Kind.ALONE, Kind.SENTINEL, Kind.CLUSTER])
        self.waits = kind is not Kind.ALONE and own.random() < 0.5
        self.server_clock = WallClock(loop)
        self.redis = Deployment(kind, loop, own, self.trace, self.server_clock)
        self.redis.on_lost(self._on_lost)
        self.disk: Any = RedisTrouble(self.redis, self.weaken)
        self.phones = NodePhones(self)
        loop.connect_to = self.redis.network.connect
        self.lost: list[tuple[float, float]] = []  # times of which writes may be lost
        self.phones_look = True  # now and then after writes were lost
        self.away: set[int] = set()  # nodes that the operator has stopped
        self._weak: list[tuple[str, float, float]] = []  # when whose leases may have ended; a life, or empty: all
        self._flying: dict[Device, list[tuple[str, float]]] = {}
        self._two: dict[SimServer, float] = {}
        self._fences: dict[ServerAddress, int] = {}
        self.failures = 0  # of what was asked of the store
        self.acquired = 0  # how often a node began to speak for a server
        self.trace.note("nodes", self.count, kind.name, "waits" if self.waits else "")
        loop.in_world(1.0, self._look)

    @property
    def pace(self) -> float:
        """See `World`: several nodes at work take their time."""
        return 0.5

    # --- lives

    @property
    def relay(self) -> SimRelay | None:
        """Some node that runs."""
        running = list(self.relays.values())
        return self.own.choice(running) if running else None

    @property
    def width(self) -> int:
        """See `World`."""
        return self.count

    def begin(self) -> None:
        """All at once."""
        self.excuses.begin("relay", self.loop.time())
        for number in range(self.count):
            self.start_relay(number)

    def start_relay(self, number: int = 0) -> None:
        """See `World`; one that the operator has stopped stays so."""
        if number not in self.away:
            super().start_relay(number)

    def new_life(self, number: int) -> Life:
        """See `World`."""
        return Life(f"node{number}.{self.lives}")

    def engine_of(self, number: int) -> Any:
        """See `World`."""
        return RedisEngine(self, number)

    def on_ready(self) -> None:
        """See `World`."""
        now = self.loop.time()
        self.excuses.end("relay", now + TAKEN_OVER)
        self.excuses.add("relay", now, now + TAKEN_OVER)  # shares move

    def on_gone(self, relay: SimRelay) -> None:
        """See `World`."""
        now = self.loop.time()
        self.excuses.add("relay", now, now + TAKEN_OVER + 5)
        if not any(other.ready for other in self.relays.values()):
            self.excuses.begin("relay", now)
        for device, flying in list(self._flying.items()):
            self._flying[device] = [push for push in flying if push[0] != relay.life.name]
        self.expect_taken_over(relay)

    def weaken(self, life: str, seconds: float) -> None:
        """Its leases may end, or everybody's: that excuses what is late, and what is pushed twice."""
        now = self.loop.time()
        self.excuses.add("relay" if life else "disk", now, now + seconds + _LATE)
        if seconds > _WEAK:
            self._weak.append((life, now, now + seconds))

    # --- what holds at any time

    def _look(self) -> None:
        """Each second."""
        self.loop.in_world(1.0, self._look)
        now = self.loop.time()
        for server in self.servers:
            lives = {s.life for s in server.sessions if s.open and s.life and s.life.alive and not s.life.stands_still}
            if len(lives) < 2:
                self._two.pop(server, None)
            elif now - self._two.setdefault(server, now) > _TWO_SESSIONS:
                self.trace.violated("two nodes speak for", server, "for", _TWO_SESSIONS, "s")
                self._two[server] = now

    def on_acquired(self, server: ServerAddress, fence: int) -> None:
        """A node speaks for a server: its fence is higher than all before."""
        set_back = self.trace.faults["redis:clock"]  # then what a failover lost cannot be known
        if fence <= self._fences.get(server, 0) and not set_back:
            self.trace.violated("a fence went back:", server.hosts[0])
        self._fences[server] = fence
        self.acquired += 1

    def expect_taken_over(self, relay: SimRelay) -> None:
        """What a node had, which from now on is of no use, is another's within a lease and a little."""
        sessions = {s for server in self.servers for s in server.sessions if s.life is relay.life}
        queues = [q for q in self.by_notifier.values() if q.subscriber in sessions and q.wanted and not q.deleted]
        if queues and not self.stopping:
            self.loop.in_world(TAKEN_OVER, self._check_taken_over, relay, queues, self.troubles(), self.loop.time())

    def _check_taken_over(self, relay: SimRelay, queues: list[SimQueue], troubles: int, since: float) -> None:
        others = [r for r in self.relays.values() if r is not relay and r.ready and not r.life.stands_still]
        if troubles != self.troubles() or not others or self.disk.was_in_trouble(TAKEN_OVER + 5) or self.stopping:
            return
        if any(r.ready_at > since for r in others):  # one that joins takes its share from others
            return
        for queue in queues:
            server = queue.server
            well = server.up and not server.hangs and not server.silent and queue.subscriber != "another"
            if queue.wanted and well and not self.is_ours(queue.subscriber):
                self.trace.violated(f"nobody has subscribed {queue} for {TAKEN_OVER:.0f} s")

    def troubles(self) -> int:
        """How much went wrong until now that may be in somebody's way."""
        return sum(count for fault, count in self.trace.faults.items() if fault.startswith(_TROUBLES))

    def check_read(self, relay: SimRelay, until: float = float("inf")) -> None:
        """See `World`. What a node had read when another one took the server over is not stored, as is told."""
        for queue, (number, at) in list(relay.read.items()):
            weak = any(  # one that stood still reads what waits for it before it knows
                whose in {"", relay.life.name} and begin - LEASE < at < end + 1.0 for whose, begin, end in self._weak
            )
            if at <= until and queue.stored < number and weak:
                self.trace.fault("redis:read_in_vain", queue, number)
                del relay.read[queue]
        super().check_read(relay, until)

    # --- pushes

    def _on_start(self, host: Any, request: Request) -> None:
        address = host.address_of(request)
        if address is None:
            return
        now = self.loop.time()
        flying = self._flying.setdefault(address.device, [])
        flying.append((request.life, now))
        if len(flying) > 1:
            life, since = flying[-2]
            if any(whose in {"", life, request.life} and end > since - LEASE for whose, _, end in self._weak):
                self.trace.fault("redis:two_in_flight", address.device)
            else:
                self.trace.violated("two pushes in flight to", address.device, "of", life, "and", request.life)

    def _on_end(self, host: Any, request: Request) -> None:
        address = host.address_of(request)
        self.pushes += address is not None
        flying = self._flying.get(address.device, []) if address is not None else []
        for push in flying:
            if push[0] == request.life:
                flying.remove(push)
                return

    # --- what is lost

    def on_stored(self, notifications: Sequence[Notification], notified: Notified) -> None:
        """See `World`."""
        super().on_stored(notifications, notified)
        now = self.loop.time()
        for n in stored(notifications, notified):
            queue = self.by_notifier[n.notifier_id]
            queue.stored_at = now
            if queue in self.owed and any(begin <= now <= end + 1 for begin, end in self.lost[-3:]):  # answered before
                self.trace.fault("redis:lost_notification", queue)
                del self.owed[queue]

    def _on_lost(self, group: Group, begin: float, end: float) -> None:
        """What was written between these times, by this group, may be lost, unless it had to be on a replica first."""
        self.weaken("", end - begin + 2 * _WEAK)
        self.disk.last(5.0)
        if self.waits:
            return
        self.lost.append((begin, end))
        lost = [q for q in self.owed if begin <= q.stored_at and self._is_in(q, group)]
        for queue in lost:
            self.trace.fault("redis:lost_notification", queue)
            del self.owed[queue]
        well = {queue: queue.stored_at for queue in lost if self._is_well(queue)}
        self.loop.in_world(MADE_GOOD, self._check_made_good, well, self.troubles(), self.loop.time())
        for device in self.devices:
            if begin <= device.replaced_at:  # no app can know: the next device token mends it
                self.trace.fault("redis:lost_registration", device)
                self.excuses.add(str(device), self.loop.time(), self.loop.time() + 70)
                self.phones.forgive(device)
                self.loop.in_world(self.own.uniform(20, 60), self.phones.replace, device)
        if self.phones_look:
            for device in self.devices:
                self.loop.in_world(self.own.uniform(20, 60), self.phones.look, device)

    def names(self) -> list[bytes]:
        """Keys that stand for all that is in their slots: those that are in use."""
        tokens = [NAMES.shard(device.token_id) for device in self.devices]
        servers = [NAMES.server(server_id(server.address)) for server in self.servers]
        return list(dict.fromkeys([NAMES.store, *tokens, *servers, *self.indexes()[:2]]))

    def indexes(self) -> list[bytes]:
        """Keys by which subscriptions are found."""
        return [NAMES.subscription(q.subscription_id) for q in self.by_notifier.values() if q.subscription_id]

    def _is_in(self, queue: SimQueue, group: Group) -> bool:
        """Whether what was stored of a queue is in this group: its token's notifications, or whose the queue is."""
        server = server_id(queue.server.address)
        bucket = NAMES.bucket(server, NAMES.bucket_number(queue.notifier_id))
        keys = NAMES.shard(self.owners[queue].token_id), NAMES.server(server), bucket
        return any(self.redis.has(group, slot_of(key)) for key in keys)

    def _is_well(self, queue: SimQueue) -> bool:
        """Nothing of the rest of the world keeps a push from its device."""
        server, device = queue.server, self.owners[queue]
        host, now = self.host_of(device.address), self.loop.time()
        asked = queue.wanted and device.verified and self.is_live(device)
        reachable = server.up and not server.hangs and not server.silent and queue.subscriber != "another"
        late = self.excuses.without(["clock", host.name, str(device)], now - MADE_GOOD, now) < MADE_GOOD
        return asked and reachable and not late and not host.trouble

    def _check_made_good(self, lost: dict[SimQueue, float], troubles: int, since: float) -> None:
        """Whose notification was lost is pushed something else: a later message, or a check, if it had none lately."""
        if troubles != self.troubles() or self.stopping or self.disk.until > since + TAKEN_OVER:
            return
        if any(relay.ready_at > since - TAKEN_OVER for relay in self.relays.values()):
            return  # one that joins knows nothing of it, and takes its share
        for queue, stored_at in lost.items():
            device = self.owners[queue]
            if self._is_well(queue) and device.pushed_at < stored_at and device.checked_at < since - _LOST_EVERY:
                self.trace.violated(f"what came for {queue} was lost, and {device} was not woken")


@contextmanager
def many_nodes(world: NodeWorld) -> Iterator[None]:
    """The engine's clock is the world's; it looks at what is due less often than it would."""
    clock = world.clock

    def steady_clock() -> Clock:
        return Clock(clock.wall, clock.steady)

    with (
        mock.patch.object(engine, "Clock", steady_clock),
        mock.patch.object(due, "_LOOK", POLL),
        mock.patch.object(sessions, "_LOST_EVERY", _LOST_EVERY),
    ):
        yield
