"""Strangers with SMP servers of their own, which are of no use to anybody: in one world of five."""

from random import Random
from typing import TYPE_CHECKING, Any, Final

from ntf_server.store.records import NewSubscription, NewToken
from sim.devices import SILENT, Device, new_address, web_key
from sim.relay import SimRelay
from sim.smp import SimServer, SimSession
from smp_bridge.ntf import Provider

if TYPE_CHECKING:
    from sim.world import World

KINDS: Final = ("tarpit", "refuses", "hangs_up", "confirms_once")
_EACH: Final = 4  # servers of a registration
_STEADY: Final = 60.0  # seconds that an honest server was there before it drops its connections
_BACK: Final = 20.0  # seconds in which a server that dropped its connections is connected to again
_TROUBLES: Final = frozenset(f"smp:{what}" for what in ("drop", "down", "hangs", "silent", "vanish", "storm", "rush"))
_TROUBLES_OF_SERVICES: Final = "service:"
_CONFIRMS: Final = 20.0  # seconds that one is well that hangs afterwards


def _is_trouble(fault: str) -> bool:
    """Whether an honest server may not be back in time for it."""
    return fault in _TROUBLES or fault.startswith(_TROUBLES_OF_SERVICES)


class StrangeServer(SimServer):
    """`kind`: one of KINDS. All of one stranger are at one address prefix."""

    def __init__(self, kind: str, number: int, prefix: str, world: "World", rng: Random) -> None:
        super().__init__(number, world.loop, rng, world.trace)
        self.kind = kind
        self.prefix = prefix
        self.hangs, self.up = kind == "tarpit", kind != "refuses"

    async def connect(self, service: Any = None) -> Any:
        """See `SimServer`."""
        connection, agreed = await super().connect(service)
        if self.kind == "hangs_up":
            self.later(connection.session.drop)
        elif self.kind == "confirms_once":
            self.loop.in_world(_CONFIRMS, self._hang, connection.session)
        return connection, agreed

    def _hang(self, session: SimSession) -> None:
        self.hangs = True
        session.drop()


class Strangers:
    """All of them in a world. Their randomness is their own: worlds without them are as they were."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.servers: list[StrangeServer] = []
        self._rng = Random(~world.seed)

    def plan(self, begin: float, end: float) -> None:
        """What they will do, if this is such a world."""
        if self.world.seed % 5:
            return
        for number in range(self._rng.randint(1, 4)):
            when = self._rng.uniform(begin, end - 120) - self.world.loop.time()
            self.world.loop.in_world(when, self._come, self._rng.choice(KINDS), number == 0)

    def _come(self, kind: str, may_be_many: bool) -> None:
        """One with many registrations, or with many servers of one.

        Of all together they are fewer than there are places: who has as many address prefixes as there are shares holds
        all places, until his servers have failed too often.
        """
        self.world.trace.fault(f"stranger:{kind}")
        registrations = self._rng.choice([1, 12]) if may_be_many else 1
        for _ in range(registrations):
            prefix = f"prefix{len(self.servers)}"
            servers = [self._server(kind, prefix) for _ in range(_EACH if registrations > 1 else 10 * _EACH)]
            self.world.loop.in_world(self._rng.uniform(0, 3), self._subscribe, servers)
        for seconds in (self._rng.uniform(5, 40), self._rng.uniform(60, 150)):
            self.world.loop.in_world(seconds, self._drop)

    def _drop(self) -> None:
        """Honest servers drop their connections meanwhile."""
        world = self.world
        for server in world.servers:
            now = world.loop.time()  # who was out of reach before is not tried again at once
            if self._is_well(server) and any(s.open and s.began < now - _STEADY for s in server.sessions):
                server.drop_all()
                world.loop.in_world(_BACK, self._check, server, world.loop.time(), self._troubles())

    def _is_well(self, server: SimServer) -> bool:
        wanted = any(q.wanted and not q.deleted for q in server.queues.values())
        return wanted and server.up and not server.hangs and not server.silent

    def _troubles(self) -> int:
        return sum(count for fault, count in self.world.trace.faults.items() if _is_trouble(fault))

    def _check(self, server: SimServer, since: float, troubles: int) -> None:
        """Whoever came back was connected to, whatever strangers do."""
        world, relay = self.world, self.world.relay
        excused = world.excuses.without(["relay", "disk"], since, world.loop.time()) < _BACK - 0.1
        if excused or troubles != self._troubles() or not self._is_well(server) or relay is None:
            return
        if not any(world.is_ours(s) and s.began > since for s in server.sessions):
            world.trace.violated(server, "was not connected to for", _BACK, "s")

    def _server(self, kind: str, prefix: str) -> StrangeServer:
        server = StrangeServer(kind, 1000 + len(self.servers), prefix, self.world, self._rng)
        self.servers.append(server)
        return server

    def _subscribe(self, servers: list[StrangeServer]) -> None:
        """TNEW, TVFY, and an SNEW for each server."""
        randbytes = self._rng.randbytes
        me = Device(10_000 + len(self.servers), bytes(32), web_key(0), randbytes(16))
        token = new_address(me, Provider.WEB_PUSH, SILENT, self._rng).token
        queues = [server.queue(0) for server in servers]
        code = randbytes(32)

        async def make(relay: SimRelay) -> Any:
            front, store = relay.fronts[Provider.WEB_PUSH], relay.store
            new = NewToken(
                randbytes(24), token, randbytes(44), randbytes(32), randbytes(32), randbytes(32), code,
                origin=front.origin(token), vapid_key=front.key_id,
            )  # fmt: skip
            registered = await store.register(new)
            assert registered is not None
            await store.verify(registered.ref, code)
            for queue in queues:
                key = queue.server.private_key(queue)
                await store.subscribe(
                    registered.ref, NewSubscription(randbytes(24), queue.server.address, queue.notifier_id, key)
                )

        self.world.phones.command("SNEWs of a stranger", make)
