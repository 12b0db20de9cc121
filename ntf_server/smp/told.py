"""What operators are told of SMP servers, by the first of their hosts."""

from typing import Any

from ntf_server.observe.events import Event, EventLog
from smp_bridge.address import ServerAddress

log = EventLog(__name__)


def subscribing(servers: int) -> None:
    """The relay begins with so many."""
    log.tell(Event.SMP_STARTED, "subscribing on %d SMP servers", servers, servers=servers)


def connected(server: ServerAddress, *, service: bool) -> None:
    """A session begins."""
    how = " as a service" if service else ""
    _tell(Event.SMP_CONNECTED, "connected to SMP server %s%s", server, how, service=service)


def disconnected(server: ServerAddress) -> None:
    """It is over."""
    _tell(Event.SMP_DISCONNECTED, "disconnected from SMP server %s", server)


def way_dead(server: ServerAddress) -> None:
    """Nothing came any more."""
    _tell(Event.SMP_WAY_DEAD, "the way to SMP server %s is dead", server)


def lost(server: ServerAddress, devices: int) -> None:
    """What it sent meanwhile may be lost: so many devices are to look."""
    text = "SMP server %s was out of reach: %d devices are to look for messages"
    _tell(Event.SMP_LOST, text, server, devices, devices=devices)


def refused(server: ServerAddress, count: int, of: int) -> None:
    """Some of what was to be subscribed."""
    _tell(Event.SMP_REFUSED, "SMP server %s refused %d of %d subscriptions", server, count, of, count=count)


def impersonated(server: ServerAddress) -> None:
    """It has another identity than its address says."""
    text = "SMP server %s is not whom its address names: someone may be impersonating it"
    _tell(Event.SMP_IMPERSONATED, text, server)


def service_changed(server: ServerAddress) -> None:
    """It knows our service by another id."""
    _tell(Event.SMP_SERVICE, "SMP server %s knows our service by another id than before", server)


def service_audited(server: ServerAddress) -> None:
    """It has fewer of our service's queues than we do."""
    _tell(Event.SMP_SERVICE, "SMP server %s lacks some of our service's queues: auditing them", server)


def service_lost(server: ServerAddress, count: int | None, of: int) -> None:
    """It has so many of our service's queues, or does not know it."""
    text = "SMP server %s has %s of our service's %d queues; subscribing one by one"
    _tell(Event.SMP_SERVICE, text, server, "none" if count is None else count, of)


def another_nodes(server: ServerAddress) -> None:
    """By the shares of nodes."""
    _tell(Event.SMP_GIVEN, "SMP server %s is another node's from now on", server)


def taken_over(server: ServerAddress) -> None:
    """By another node, whose lease counts."""
    _tell(Event.SMP_TAKEN, "SMP server %s was taken over by another node", server)


def let_go(servers: int) -> None:
    """Their leases cannot be renewed."""
    log.tell(Event.LEASES_LOST, "leases of %d SMP servers cannot be renewed: they are let go", servers, servers=servers)


def _tell(event: Event, text: str, server: ServerAddress, *words: object, **fields: Any) -> None:
    host = server.hosts[0]
    log.tell(event, text, host, *words, server=host, **fields)
