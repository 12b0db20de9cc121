"""What every push provider is, and the only things that can come of a push."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ntf_server.store.records import Push, StoredNotification
from smp_bridge.ntf import InvalidReason


class Scope(StrEnum):
    """What a retry concerns."""

    TOKEN = "token"  # noqa: S105
    PROVIDER = "provider"


@dataclass(slots=True, unsafe_hash=True)  # as quick to make as can be: see store.base
class Accepted:
    """Delivered: the provider took the push, which held these notifications."""

    notifications: tuple[StoredNotification, ...] = ()


@dataclass(frozen=True, slots=True)
class Dead:
    """The token is no longer valid."""

    reason: InvalidReason


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again; `after`: seconds that the provider asked for, None for the dispatcher's own backoff."""

    reason: str
    scope: Scope = Scope.TOKEN
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Permanent:
    """A fault of ours (configuration, payload): loud, kept, and retried slowly until the time to live is over."""

    reason: str


Result = Accepted | Dead | Retry | Permanent
OnResult = Callable[[Push, Result], None]


class PushProvider(Protocol):
    """A way to devices."""

    def send(self, pushes: Sequence[Push], on_result: OnResult) -> None:
        """Start these pushes; `on_result` is called in the loop, once for each, soon or at once. Never raises."""
        ...


class NullProvider:
    """APNs null (`AN`): answers as if delivered, sends nothing. For testing a server from an app."""

    def send(self, pushes: Sequence[Push], on_result: OnResult) -> None:
        """See `PushProvider`."""
        for push in pushes:
            on_result(push, Accepted(push.notifications))
