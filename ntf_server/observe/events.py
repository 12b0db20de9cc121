"""What is told of what happened: every event that the relay tells of, in one table.

A name never changes its meaning: alerts and scripts look for it. What people read beside it may be bettered.
"""

import logging
from enum import StrEnum
from typing import Any, Final, Self

FIELD: Final = "event"  # of a log record: which it is
FIELDS: Final = "fields"  # of a log record: its fields, by name


class Event(StrEnum):
    """An event: its name, how loud it is (a level of `logging`), what it means, which fields it has."""

    level: int
    text: str
    fields: tuple[str, ...]

    def __new__(cls, name: str, level: int, text: str, *fields: str) -> Self:
        """The name is the value."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.level, member.text, member.fields = level, text, fields
        return member

    RELAY_STARTED = (
        "relay.started",
        logging.INFO,
        "Clients are served from now on. `off`: what the configuration leaves out.",
        "version",
        "address",
        "store",
        "providers",
        "off",
    )
    RELAY_DRAINING = "relay.draining", logging.INFO, "An operator has it hand over what it has."
    RELAY_DRAINED = "relay.drained", logging.INFO, "It has; it stops."
    RELAY_STOPPING = "relay.stopping", logging.INFO, "The relay was asked to stop, or has to."
    RELAY_STOPPED = "relay.stopped", logging.INFO, "The relay has ended; nothing of it runs any more.", "seconds"
    PUSH_ENDED = (
        "push.ended",
        logging.DEBUG,
        "A provider answered a push, or did not. `push`: the push's id, the same over all tries (`apns-id`); `token`:"
        " the fingerprint of the device token; `age`: seconds since what it says became due; `reason`: in the"
        " provider's own words.",
        "push",
        "token",
        "provider",
        "service",
        "kind",
        "age",
        "attempt",
        "outcome",
        "reason",
    )
    TOKEN_DEAD = (
        "token.dead",
        logging.INFO,
        "A provider says that a device token is no longer valid.",
        "provider",
        "reason",
    )
    PROVIDER_TROUBLE = (
        "provider.trouble",
        logging.ERROR,
        "Pushes do not go through a provider, or a push service; told again every ten minutes.",
        "provider",
        "reason",
        "seconds",
    )
    PROVIDER_WELL = (
        "provider.well",
        logging.WARNING,
        "They go through again: the end of `provider.trouble`.",
        "provider",
        "reason",
        "seconds",
    )
    PROVIDER_MISSING = (
        "provider.missing",
        logging.ERROR,
        "Pushes wait for providers that are not configured.",
        "providers",
    )
    STORE_TROUBLE = (
        "store.trouble",
        logging.ERROR,
        "The store does not do what it is asked for, which is tried again; told again every minute.",
        "reason",
    )
    STORE_WELL = "store.well", logging.WARNING, "It does: the end of `store.trouble`.", "seconds", "failures"
    STORE_DOUBTED = (
        "store.doubted",
        logging.WARNING,
        "Redis began anew, or another one is primary: what was written last may be lost. Queues are subscribed again,"
        " devices are told to look.",
    )
    STORE_PRIMARIES = "store.primaries", logging.INFO, "Others have Redis's slots than before.", "primaries"
    SHARDS_TROUBLE = (
        "shards.trouble",
        logging.WARNING,
        "A primary of a Redis cluster is away: what it has waits, the rest goes on.",
        "reason",
    )
    SHARDS_WELL = "shards.well", logging.WARNING, "All can be had: the end of `shards.trouble`."
    RECORDS_DAMAGED = (
        "records.damaged",
        logging.ERROR,
        "Records of the store cannot be read, and are set aside.",
        "table",
        "count",
    )
    TOKENS_PURGED = (
        "tokens.purged",
        logging.WARNING,
        "An operator deleted registrations, with their subscriptions.",
        "count",
        "status",
    )
    TOKENS_INVALIDATED = (
        "tokens.invalidated",
        logging.WARNING,
        "An operator made registrations INVALID.",
        "count",
        "status",
        "reason",
    )
    CERTIFICATE_ENDING = (
        "certificate.ending",
        logging.WARNING,
        "A certificate in use ends within 30 days (`ends`); told at the start, and again every day.",
        "certificate",
        "ends",
    )
    CERTIFICATE_ENDED = (
        "certificate.ended",
        logging.ERROR,
        "A certificate in use has ended; told again every day.",
        "certificate",
        "ends",
    )
    CERTIFICATE_WELL = (
        "certificate.well",
        logging.WARNING,
        "A renewed one is in use: the end of `certificate.ending` and `certificate.ended`.",
        "certificate",
        "ends",
    )
    VAPID_KEY_UNUSED = (
        "vapid.unused",
        logging.WARNING,
        "No registration of this node is for an older VAPID key (`key`) any more: once every node says so it may leave"
        " `old_key_files`.",
        "key",
    )
    CLOCK_SET = (
        "clock.set",
        logging.WARNING,
        "Somebody set the clock, by so many seconds.",
        "seconds",
    )
    SMP_STARTED = "smp.started", logging.INFO, "The relay begins with so many SMP servers.", "servers"
    SMP_CONNECTED = "smp.connected", logging.INFO, "A session with an SMP server begins.", "server", "service"
    SMP_DISCONNECTED = (
        "smp.disconnected",
        logging.INFO,
        "It is over; another follows while it is wanted.",
        "server",
    )
    SMP_WAY_DEAD = "smp.way_dead", logging.INFO, "Nothing came from an SMP server, nor an answer.", "server"
    SMP_LOST = (
        "smp.lost",
        logging.INFO,
        "What an SMP server sent meanwhile may be lost: its devices are told to look.",
        "server",
        "devices",
    )
    SMP_REFUSED = "smp.refused", logging.INFO, "An SMP server refused subscriptions.", "server", "count"
    SMP_IMPERSONATED = (
        "smp.impersonated",
        logging.ERROR,
        "An SMP server that was what its address says, or an own one, has another identity.",
        "server",
    )
    SMP_SERVICE = (
        "smp.service",
        logging.WARNING,
        "An SMP server does not agree on what our service has there: it is looked at anew.",
        "server",
    )
    SMP_GIVEN = "smp.given", logging.INFO, "An SMP server is another node's share from now on.", "server"
    SMP_TAKEN = (
        "smp.taken",
        logging.WARNING,
        "Another node speaks for an SMP server that was ours.",
        "server",
    )
    LEASES_LOST = (
        "leases.lost",
        logging.WARNING,
        "Leases of SMP servers could not be renewed in time.",
        "servers",
    )
    CONFIG_RELOADED = "config.reloaded", logging.INFO, "The configuration was read anew, and is in use."
    CONFIG_REFUSED = "config.refused", logging.ERROR, "It has a mistake: nothing was changed."
    PART_FAILED = (
        "part.failed",
        logging.ERROR,
        "A part of the program failed, and is started again: a fault of the program.",
        "part",
        "reason",
    )


class EventLog:
    """Tells events of a module, by its name."""

    def __init__(self, module: str) -> None:
        self._log = logging.getLogger(module)

    def is_told(self, event: Event) -> bool:
        """Whether anybody listens: what is costly to find out need not be otherwise."""
        return self._log.isEnabledFor(event.level)

    def tell(
        self, event: Event, message: str, *args: object, exc_info: BaseException | None = None, **fields: Any
    ) -> None:
        """`message`: for people; `exc_info`: whose traceback is shown. Raises ValueError: it has other fields."""
        if not self._log.isEnabledFor(event.level):
            return
        if unknown := fields.keys() - set(event.fields):
            raise ValueError(f"{event} has no field {', '.join(sorted(unknown))}")
        self._log.log(event.level, message, *args, exc_info=exc_info, extra={FIELD: event, FIELDS: fields})


def table() -> str:
    """The events, as docs/reference/events.md has them."""
    rows = ["| event | level | fields | meaning |", "| --- | --- | --- | --- |"]
    for event in Event:
        fields = ", ".join(f"`{field}`" for field in event.fields)
        rows.append(f"| `{event}` | {logging.getLevelName(event.level).lower()} | {fields} | {event.text} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
