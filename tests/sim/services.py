"""SMP servers that know services, in one world of four, and what goes wrong with them (wire.md, section 7)."""

from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sim.smp import SimQueue, SimServer, SimSession
from smp_bridge import smp
from smp_bridge.handshake import ServiceCredentials, ServiceRefusedError, ServiceUnreadyError, service_hash
from smp_bridge.service import ids_hash
from smp_bridge.transmission import (
    ERR_SERVICE,
    Err,
    Message,
    Service,
    Session,
    Transmission,
    verify_transmission,
)

if TYPE_CHECKING:
    from sim.world import World

_VERSIONS: Final = (16, 18, 19, 20)


def has_services(seed: int) -> bool:
    """Whether its relay is a service, where it may."""
    return seed % 4 == 2


@dataclass
class _Record:
    """What a server keeps of the relay's service. `holder`: the session that is subscribed; a word: somebody else."""

    service_id: bytes
    members: dict[SimQueue, None] = field(default_factory=dict)
    holder: SimSession | str | None = None


_DELETIONS: Final = ("phone:TDEL", "phone:SDEL", "phone:uninstalled", "smp:deleted")


class ServiceServer(SimServer):
    """One that takes services. Its randomness is its own, but for what all servers have."""

    def __init__(self, number: int, world: "World", own: Random) -> None:
        super().__init__(number, world.loop, world.rng, world.trace)
        self.version = own.choice(_VERSIONS)
        self.own = own
        self.record = _Record(own.randbytes(24))
        self._hid = False  # losses that its count could not tell
        self.refuses = False
        self.unready = 0  # connections
        self._asked: set[SimSession] = set()

    def agree(self, service: ServiceCredentials | None) -> Session:
        """See `SimServer`. Raises HandshakeError."""
        agreed = super().agree(service)
        if service is None:
            return agreed
        if self.unready:
            self.unready -= 1
            self._trace.fault("service:unready", self)
            raise ServiceUnreadyError("the service cannot be read")
        if self.refuses:
            self._trace.fault("service:refused", self)
            raise ServiceRefusedError("no services here")
        known = Service(self.record.service_id, service_hash(service.chain), service.session_key)
        return replace(agreed, service=known)

    def do(self, session: SimSession, t: Transmission) -> Message | None:
        """See `SimServer`."""
        if isinstance(smp.parse_command(t.command, self.version), smp.NSubs):
            return self._subscribe_service(session, t)
        return super().do(session, t)

    def _subscribe_service(self, session: SimSession, t: Transmission) -> Message:
        service = session.session.service
        if service is None or t.entity_id != self.record.service_id:
            return ERR_SERVICE
        assert isinstance(service.key, Ed25519PrivateKey)
        if not verify_transmission(session.session, t, service.key.public_key()):
            return ERR_SERVICE
        if session not in self._asked:
            self._asked.add(session)
            self._take(session)
            for queue in self.record.members:
                self.give(queue, session)
        held = [q.notifier_id for q in self.record.members if q.subscriber is session]
        return smp.SOks(len(held), ids_hash(held))

    def _subscribe(self, session: SimSession, t: Transmission) -> Message:
        answer = super()._subscribe(session, t)
        if isinstance(answer, Err):
            return answer
        queue = self.queues[t.entity_id]
        if session.session.service is None:
            self.record.members.pop(queue, None)
            return smp.SOk()
        self._take(session)
        self.record.members[queue] = None
        return smp.SOk(self.record.service_id)

    def _take(self, session: SimSession) -> None:
        """It is the session of the service; the one before is told that it no longer is."""
        before, self.record.holder = self.record.holder, session
        if isinstance(before, SimSession) and before is not session:
            self._end_service(before)

    def _end_service(self, session: SimSession) -> None:
        held = [queue for queue in self.record.members if queue.subscriber is session]
        for queue in held:
            queue.subscriber = None
        session.tell(self.record.service_id, smp.Ends(len(held), ids_hash(q.notifier_id for q in held)))

    def forget(self, session: SimSession) -> None:
        """See `SimServer`."""
        super().forget(session)
        self._asked.discard(session)
        if self.record.holder is session:
            self.record.holder = None

    def delete(self, queue: SimQueue) -> None:
        """See `SimServer`."""
        super().delete(queue)
        self.record.members.pop(queue, None)

    def take_over(self, queue: SimQueue) -> None:
        """See `SimServer`. Who is no service takes it from the service."""
        super().take_over(queue)
        self.record.members.pop(queue, None)

    @property
    def hides_losses(self) -> bool:
        """Whether its count alone cannot tell that it lacks some: it still has some that the relay released."""
        return self._hid or (self.version < smp.IDS_HASHES and any(not q.wanted for q in self.record.members))

    # --- faults

    def lose_service(self) -> None:
        """Restored from a backup: the service has another id, and no queues."""
        self._hid = False
        self.record = _Record(self.own.randbytes(24))
        self.drop_all()

    def lose(self, count: int) -> None:
        """So many queues are not the service's any more, and nobody says so."""
        # An older server only counts: what it lost may pass for one that the relay released, as devices deleted it.
        self._hid = self.version < smp.IDS_HASHES and any(self._trace.faults[fault] for fault in _DELETIONS)
        for queue in self.own.sample(list(self.record.members), min(len(self.record.members), count)):
            del self.record.members[queue]
        self.drop_all()

    def taken_over(self, seconds: float) -> None:
        """Another relay with the same service subscribes, for a while."""
        if isinstance(self.record.holder, SimSession):
            self._end_service(self.record.holder)
        self.record.holder = "another"
        for queue in self.record.members:
            queue.subscriber = "another"
        self.loop.in_world(seconds, self._given_back)

    def _given_back(self) -> None:
        if self.record.holder == "another":
            self.record.holder = None
        for queue in self.record.members:
            if queue.subscriber == "another":
                queue.subscriber = None


class ServiceFaults:
    """What goes wrong with services, between two times; all is well after that."""

    def __init__(self, world: "World", begin: float, end: float) -> None:
        self._world = world
        self._servers = [server for server in world.servers if isinstance(server, ServiceServer)]
        if not self._servers:
            return
        self._rng = Random(world.seed * 8 + 1)
        faults = [self._forgotten, self._loses_some, self._loses_all, self._unready, self._refused, self._taken_over]
        for _ in range(self._rng.randint(4, 10)):
            when = self._rng.uniform(begin, end - 300) - world.loop.time()
            world.loop.in_world(when, self._rng.choice(faults), self._rng.choice(self._servers))
        world.loop.in_world(end - world.loop.time(), self._heal)

    def _heal(self) -> None:
        for server in self._servers:
            server.refuses, server.unready = False, 0

    def _forgotten(self, server: ServiceServer) -> None:
        self._world.trace.fault("service:forgotten", server)
        server.lose_service()

    def _loses_some(self, server: ServiceServer) -> None:
        self._world.trace.fault("service:loses_some", server)
        server.lose(self._rng.randint(1, 3))

    def _loses_all(self, server: ServiceServer) -> None:
        self._world.trace.fault("service:loses_all", server)
        server.lose(len(server.record.members))

    def _unready(self, server: ServiceServer) -> None:
        server.unready = self._rng.randint(1, 3)
        server.drop_all()

    def _refused(self, server: ServiceServer) -> None:
        server.refuses = True
        server.drop_all()
        self._world.loop.in_world(self._rng.uniform(20, 300), setattr, server, "refuses", False)

    def _taken_over(self, server: ServiceServer) -> None:
        self._world.trace.fault("service:taken_over", server)
        server.taken_over(self._rng.uniform(5, 200))
