"""What operators are told of SMP servers, by the first of their hosts."""

from ntf_server.observe.events import Event, EventLog
from smp_bridge.address import ServerAddress

log = EventLog(__name__)


def subscribing(servers: int) -> None:
    """The relay begins with so many."""
    log.tell(Event.SMP_STARTED, "subscribing on %d SMP servers", servers, servers=servers)


def connected(server: ServerAddress, *, service: bool) -> None:
    """A session begins."""
    host = server.hosts[0]
    how = " as a service" if service else ""
    log.tell(Event.SMP_CONNECTED, "connected to SMP server %s%s", host, how, server=host, service=service)


def disconnected(server: ServerAddress) -> None:
    """It is over."""
    host = server.hosts[0]
    log.tell(Event.SMP_DISCONNECTED, "disconnected from SMP server %s", host, server=host)


def way_dead(server: ServerAddress) -> None:
    """Nothing came any more."""
    host = server.hosts[0]
    log.tell(Event.SMP_WAY_DEAD, "the way to SMP server %s is dead", host, server=host)


def lost(server: ServerAddress, devices: int) -> None:
    """What it sent meanwhile may be lost: so many devices are to look."""
    host = server.hosts[0]
    text = "SMP server %s was out of reach: %d devices are to look for messages"
    log.tell(Event.SMP_LOST, text, host, devices, server=host, devices=devices)


def refused(server: ServerAddress, count: int, of: int) -> None:
    """Some of what was to be subscribed."""
    host = server.hosts[0]
    log.tell(
        Event.SMP_REFUSED, "SMP server %s refused %d of %d subscriptions", host, count, of, server=host, count=count
    )


def impersonated(host: str) -> None:
    """It has another identity than its address says."""
    text = "SMP server %s is not whom its address names: someone may be impersonating it"
    log.tell(Event.SMP_IMPERSONATED, text, host, server=host)


def service_changed(server: ServerAddress) -> None:
    """It knows our service by another id."""
    host = server.hosts[0]
    text = "SMP server %s knows our service by another id than before"
    log.tell(Event.SMP_SERVICE, text, host, server=host)


def service_audited(server: ServerAddress) -> None:
    """It has fewer of our service's queues than we do."""
    host = server.hosts[0]
    text = "SMP server %s lacks some of our service's queues: auditing them"
    log.tell(Event.SMP_SERVICE, text, host, server=host)


def service_lost(server: ServerAddress, count: int | None, of: int) -> None:
    """It has so many of our service's queues, or does not know it."""
    host = server.hosts[0]
    text = "SMP server %s has %s of our service's %d queues; subscribing one by one"
    log.tell(Event.SMP_SERVICE, text, host, "none" if count is None else count, of, server=host)


def another_nodes(server: ServerAddress) -> None:
    """By the shares of nodes."""
    host = server.hosts[0]
    log.tell(Event.SMP_GIVEN, "SMP server %s is another node's from now on", host, server=host)


def taken_over(server: ServerAddress) -> None:
    """By another node, whose lease counts."""
    host = server.hosts[0]
    log.tell(Event.SMP_TAKEN, "SMP server %s was taken over by another node", host, server=host)


def let_go(servers: int) -> None:
    """Their leases cannot be renewed."""
    text = "leases of %d SMP servers cannot be renewed: they are let go"
    log.tell(Event.LEASES_LOST, text, servers, servers=servers)
