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
    STORE_TROUBLE = (
        "store.trouble",
        logging.ERROR,
        "The store does not do what it is asked for, which is tried again; told again every minute.",
        "reason",
    )
    STORE_WELL = "store.well", logging.WARNING, "It does: the end of `store.trouble`.", "seconds", "failures"


class EventLog:
    """Tells events of a module, by its name."""

    def __init__(self, module: str) -> None:
        self._log = logging.getLogger(module)

    def is_told(self, event: Event) -> bool:
        """Whether anybody listens: what is costly to find out need not be otherwise."""
        return self._log.isEnabledFor(event.level)

    def tell(self, event: Event, message: str, *args: object, **fields: Any) -> None:
        """`message`: for people, without what the fields say already. Raises ValueError: it has other fields."""
        if not self._log.isEnabledFor(event.level):
            return
        if unknown := fields.keys() - set(event.fields):
            raise ValueError(f"{event} has no field {', '.join(sorted(unknown))}")
        self._log.log(event.level, message, *args, extra={FIELD: event, FIELDS: fields})


def table() -> str:
    """The events, as docs/reference/events.md has them."""
    rows = ["| event | level | fields | meaning |", "| --- | --- | --- | --- |"]
    for event in Event:
        fields = ", ".join(f"`{field}`" for field in event.fields)
        rows.append(f"| `{event}` | {logging.getLevelName(event.level).lower()} | {fields} | {event.text} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
