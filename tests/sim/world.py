"""The simulated world: phones, queues, push services, SMP servers, and one relay, which lives several times.

The workload and the faults come from a seed. What is promised is looked at while it runs and at its end (`promises`).
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any
from unittest import mock

from ntf_server.observe.names import KindCounter
from ntf_server.smp import inbox
from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.memory import Times
from ntf_server.store.records import Notification, Notified
from ntf_server.store.sqlite import database, engine
from sim.clock import WallClock
from sim.devices import SILENT, Address, Device, new_address, web_key
from sim.excuses import Excuses
from sim.http import Internet, Request
from sim.loop import Life, VirtualLoop
from sim.phones import Phones
from sim.providers import HOSTS, Host
from sim.relay import APNS_HOST, FCM_HOST, Setup, SimRelay
from sim.services import ServiceServer, has_services
from sim.smp import SimQueue, SimServer, SimSession
from sim.store import Disk, Engine, SimDatabase
from sim.strangers import Strangers, StrangeServer
from sim.trace import Trace
from smp_bridge.address import ServerAddress
from smp_bridge.connecting import Turn
from smp_bridge.handshake import ServiceCredentials
from smp_bridge.network import Route
from smp_bridge.ntf import Provider


@dataclass
class Waiting:
    """What a queue's device is owed: the oldest notification that it has not seen, and the newest."""

    first: int
    since: float
    newest: int


class World:
    """Make it in a virtual loop; `scenario` then has it live."""

    def __init__(self, seed: int, loop: VirtualLoop, *, keep: bool = False) -> None:
        self.seed = seed
        self.loop = loop
        self.rng = rng = Random(seed)
        self.trace = trace = Trace(loop.time, keep=keep)
        self.clock = WallClock(loop)
        self.disk = Disk(loop, rng, trace)
        self.internet = Internet(loop, trace)
        self.excuses = Excuses()
        self.phones = Phones(self)
        self.owed: dict[SimQueue, Waiting] = {}
        self.owners: dict[SimQueue, Device] = {}
        self.by_notifier: dict[bytes, SimQueue] = {}
        self.devices: list[Device] = []
        self.relays: dict[int, SimRelay] = {}  # nodes that run, by their numbers
        self.lives = 0
        self.pushes = 0
        self.reloads = 0  # how often lanes began anew: at a start, a reload
        self.quiet = False
        self.stopping = False
        self.before_start: list[Callable[[], None]] = []  # what an operator does while the relay is down
        self.in_flight: Counter[tuple[Device, str]] = Counter()
        places = {
            Provider.APNS: rng.randint(2, 5),
            Provider.FCM: rng.randint(2, 5),
            Provider.WEB_PUSH: rng.randint(4, 10),
        }
        short = rng.random() < 0.2
        self.setup = Setup(places, message_ttl=600 if short else 24 * 3600, services=has_services(seed))
        times = Times(message_ttl=self.setup.message_ttl, verification_ttl=self.setup.verification_ttl)
        self.engine = Engine(self.disk, self.clock, times, self.on_stored)
        self.expired = 0  # notifications that lives which are over have counted
        self.hosts = self._make_hosts()
        self.servers = self._make_servers()
        for server in self.servers:
            server.on_read = self._on_read
        self.strangers = Strangers(self)
        self.internet.on_start, self.internet.on_end = self._on_start, self._on_end
        trace.note("places", *places.values(), "servers", len(self.servers), "ttl", self.setup.message_ttl)

    @property
    def relay(self) -> SimRelay | None:
        """One that runs."""
        return self.relays.get(0)

    @property
    def width(self) -> int:
        """How many nodes there are at most."""
        return 1

    @property
    def pace(self) -> float:
        """How long all takes, against other worlds."""
        return 1.0

    # --- what there is

    def _make_hosts(self) -> dict[str, Host]:
        origins = [APNS_HOST, FCM_HOST, SILENT, *(f"https://push{i}.example" for i in range(self.rng.randint(2, 4)))]
        hosts: dict[str, Host] = {}
        for origin in origins:
            kind = {APNS_HOST: Provider.APNS, FCM_HOST: Provider.FCM}.get(origin, Provider.WEB_PUSH)
            hosts[origin] = HOSTS[kind](origin, self.loop, self.clock, self.rng, self.trace)
        hosts[SILENT].trouble = "tarpit"
        self.internet.hosts.update(hosts)
        return hosts

    def _make_servers(self) -> list[SimServer]:
        count = self.rng.randint(1, 3)
        if not self.setup.services:
            return [SimServer(i, self.loop, self.rng, self.trace) for i in range(count)]
        own = Random(self.seed * 8)
        return [ServiceServer(i, self, own) for i in range(count)]

    def host_of(self, address: Address) -> Host:
        """Where it is pushed to."""
        return self.hosts[address.origin or (APNS_HOST if address.provider is Provider.APNS else FCM_HOST)]

    def add_device(self, provider: Provider, origin: str = "") -> Device:
        """A phone, that registers soon, and its queues."""
        number = len(self.devices)
        device = Device(number, self.rng.randbytes(32), web_key(number), self.rng.randbytes(16))
        self.give_address(device, provider, origin)
        device.on_code = lambda code: self.phones.on_code(device, code)
        device.on_entry = self._on_entry
        device.token_id = self.rng.randbytes(24)
        self.devices.append(device)
        for _ in range(self.rng.choice([1, 1, 2, 3, 8])):
            self.add_queue(device)
        return device

    def give_address(self, device: Device, provider: Provider, origin: str = "") -> None:
        """A new device token, from the system."""
        address = new_address(device, provider, origin, self.rng)
        address.registered_at = self.loop.time()
        device.address = address
        self.host_of(address).addresses[address.name] = address

    def add_queue(self, device: Device) -> SimQueue:
        """A queue that a phone will subscribe."""
        queue = self.rng.choice(self.servers).queue(len(self.by_notifier))
        self.by_notifier[queue.notifier_id] = queue
        self.owners[queue] = device
        device.queues[queue.notifier_id] = queue
        return queue

    def is_live(self, device: Device) -> bool:
        """Whether anything is promised to it."""
        return not device.deleted and not device.damaged and device.address.gone_at is None

    # --- the relay's lives

    def begin(self) -> None:
        """The operator starts what there is."""
        self.excuses.begin("relay", self.loop.time())
        self.start_relay()

    def start_relay(self, number: int = 0) -> None:
        """A process begins."""
        while self.before_start:
            self.before_start.pop()()
        self.lives += 1
        self.reloads += 1
        life = self.new_life(number)
        if not self.quiet and self.rng.random() < 0.1:
            life.dies_at = self.rng.randint(1, 200)
        engine = self.engine_of(number)
        relay = SimRelay(life, self.setup, self.internet, self.clock, self.rng, self.trace, engine, self._connect)
        relay.number = number
        life.on_death = lambda: self._on_death(relay)
        self.relays[number] = relay
        self.trace.note(life.name, "begins")
        task = self.loop.begin(life, relay.run())
        task.add_done_callback(lambda _: self._on_end_of_life(relay), context=self.loop.world)
        self.when_ready(relay)

    def new_life(self, _number: int) -> Life:
        """Of a node."""
        return Life(f"life{self.lives}")

    def engine_of(self, _number: int) -> Engine:
        """How a node opens the store."""
        return self.engine

    async def _connect(
        self, address: ServerAddress, *, turn: Turn, service: ServiceCredentials | None = None, **_: Any
    ) -> Any:
        server = next(s for s in (*self.servers, *self.strangers.servers) if s.address == address)
        prefix = server.prefix if isinstance(server, StrangeServer) else str(server)
        route = Route(address.hosts[0], address.port_number, prefixes=(prefix,), destinations=(str(server),))
        async with turn.connecting(route):
            connected = await server.connect(service)
        turn.reached(prefix)
        return connected

    def when_ready(self, relay: SimRelay) -> None:
        """From then on the relay is no excuse."""
        if relay.ready:
            self.on_ready()
        elif self.relays.get(relay.number) is relay:
            self.loop.in_world(0.1, self.when_ready, relay)

    def on_ready(self) -> None:
        """A node runs."""
        self.excuses.end("relay", self.loop.time() + 3)

    def _gone(self, relay: SimRelay) -> None:
        self.expired += relay.metrics.value(KindCounter.EXPIRED, "notification")
        del self.relays[relay.number]
        self.on_gone(relay)
        for server in (*self.servers, *self.strangers.servers):
            for session in [s for s in server.sessions if s.life is relay.life]:
                server.later(session.drop)
        if not self.stopping:
            self.loop.in_world(self.rng.uniform(0.5, 15), self.start_relay, relay.number)

    def on_gone(self, relay: SimRelay) -> None:
        """A node runs no more."""
        self.excuses.begin("relay", self.loop.time())
        for key in [key for key in self.in_flight if key[1] == relay.life.name]:
            del self.in_flight[key]

    def expired_so_far(self) -> int:
        """Notifications that were counted as expired, by all lives."""
        now = sum(relay.metrics.value(KindCounter.EXPIRED, "notification") for relay in self.relays.values())
        return self.expired + now

    def is_ours(self, session: object) -> bool:
        """Whether a node that runs has this session with an SMP server."""
        lives = [relay.life for relay in self.relays.values()]
        return isinstance(session, SimSession) and session.open and session.life in lives

    def _on_death(self, relay: SimRelay) -> None:
        self.trace.fault("relay:crash" if relay.ready else "relay:crash_at_start_or_stop")
        self._gone(relay)

    def _on_end_of_life(self, relay: SimRelay) -> None:
        """It ended by itself. What it read from sockets is stored, and nothing of it is left."""
        self.trace.note(relay.life.name, "ends", relay.error or "")
        if relay.error is not None and not isinstance(relay.error, StoreUnavailableError):
            self.trace.violated("the relay ended:", repr(relay.error))
        if not self.disk.was_in_trouble(40.0, "busy", "full"):
            self.check_read(relay)
        left = [
            *self.loop.left(relay.life),
            *(f"a connection to {s}" for s in self.servers for x in s.sessions if x.is_open_to(relay.life)),
        ]
        if left:
            self.trace.violated("left at the end:", ", ".join(left))
        relay.life.alive = False
        self._gone(relay)

    def check_read(self, relay: SimRelay, until: float = float("inf")) -> None:
        """What was read from a socket until then is stored."""
        for queue, (number, at) in relay.read.items():
            if at <= until and queue.stored < number and queue.wanted and self.is_live(self.owners[queue]):
                self.trace.violated(queue, number, "was read from a socket, and not stored")

    # --- what the relay does, seen from outside

    def _on_start(self, host: Any, request: Request) -> None:
        address = host.address_of(request)
        if address is None:
            return
        key = address.device, request.life
        self.in_flight[key] += 1
        if self.in_flight[key] > 1:
            self.trace.violated("two pushes in flight to", address.device)

    def _on_end(self, host: Any, request: Request) -> None:
        address = host.address_of(request)
        self.pushes += address is not None
        if address is not None and self.in_flight[address.device, request.life]:
            self.in_flight[address.device, request.life] -= 1

    def _on_read(self, session: SimSession, numbers: Any) -> None:
        for relay in self.relays.values():
            if relay.life is session.life:
                for queue, number in numbers:
                    relay.read[queue] = number, self.loop.time()

    def on_stored(self, notifications: Sequence[Notification], notified: Notified) -> None:
        """`notify` has returned: from now on they are owed, but for what it could not store."""
        now = self.loop.time()
        for n in stored(notifications, notified):
            queue, number = self.by_notifier[n.notifier_id], int.from_bytes(n.meta[:8], "big")
            queue.stored = max(queue.stored, number)
            if number <= queue.seen or not queue.wanted or not self.is_live(self.owners[queue]):
                continue
            waiting = self.owed.setdefault(queue, Waiting(number, now, number))
            waiting.newest = max(waiting.newest, number)

    def _on_entry(self, queue: SimQueue, number: int) -> None:
        queue.seen = max(queue.seen, number)
        waiting = self.owed.get(queue)
        if waiting is not None and number >= waiting.first:
            self.check_wait(queue, waiting)
            if number >= waiting.newest:
                del self.owed[queue]
            else:
                waiting.first, waiting.since = number + 1, self.loop.time()

    def check_wait(self, queue: SimQueue, waiting: Waiting) -> None:
        """A due token is pushed within a bound, but for what excuses it; what is over its time to live is not."""
        now = min(self.loop.time(), waiting.since + self.setup.message_ttl)
        device = self.owners[queue]
        host = self.host_of(device.address)
        late = self.excuses.without(["relay", "disk", "clock", host.name, str(device)], waiting.since, now)
        # What fails once more at the end of a bad time waits for the longest backoff.
        bound = 25.0 + (310.0 if host.flaky else 0.0) + (310.0 if self.setup.raises else 0.0)
        if device.address.provider is Provider.WEB_PUSH and self._web_was_in_trouble():
            bound += 60.0  # one that was well had many places, and holds them until it is known to be silent
        if late > bound:
            self.trace.violated(f"{device} of {host.name} waited {late:.1f} s for {queue} {waiting.first}")

    def _web_was_in_trouble(self) -> bool:
        hosts = [h for name, h in self.hosts.items() if h.kind == "web" and name != SILENT]
        return any(h.trouble or self.loop.time() < h.well_since + 120 for h in hosts)


@contextmanager
def deterministic(world: World) -> Iterator[None]:
    """Randomness and time are the world's; the store's threads are timers."""
    random.seed(world.seed)
    source = Random(world.seed)
    with (
        mock.patch.object(os, "urandom", source.randbytes),
        mock.patch.object(time, "time", world.clock.wall),
        mock.patch.object(time, "monotonic", world.loop.time),
        mock.patch.object(engine, "Database", SimDatabase),
        mock.patch.object(database, "time", world.disk),
        mock.patch.object(inbox, "_PER_SESSION", 3),  # bounds that matter with so few messages
        mock.patch.object(inbox, "_IN_ALL", 20),
    ):
        yield


def stored(notifications: Sequence[Notification], notified: Notified) -> list[Notification]:
    """Those that the store took."""
    unstored = set(map(id, notified.unstored))
    return [n for n in notifications if id(n) not in unstored]
