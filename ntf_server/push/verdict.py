"""What every push provider is, and the only things that its answer can mean."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final, Protocol, TypeAlias

from ntf_server.store.records import Claim, Entry, Record
from smp_bridge.ntf import InvalidReason

AT_ONCE: Final = 1000  # where a push takes 10 us: each further turn makes bursts slower


class Scope(StrEnum):
    """Whom a trouble concerns."""

    TOKEN = "token"  # noqa: S105
    ORIGIN = "origin"  # one push service of Web Push
    PROVIDER = "provider"


class Delivered(Record, frozen=True, eq=False, gc=False):
    """The provider took the push, which held these entries."""

    held: tuple[Entry, ...] = ()


class DeadToken(Record, frozen=True):
    """The provider says that the token is no longer valid."""

    reason: InvalidReason


class Again(Record, frozen=True):
    """Try again. `reason`: the provider's words; `after`: seconds that it asked for, None: our own backoff.

    `scope` ORIGIN or PROVIDER: all that goes that way waits.
    """

    reason: str
    scope: Scope = Scope.TOKEN
    after: float | None = None


class Ours(Record, frozen=True):
    """A fault of the operator's, or of ours: loud. `scope` TOKEN: this push alone; else all that goes that way waits,
    and is probed with one push from 1 s up to 10 min.
    """

    reason: str
    scope: Scope = Scope.PROVIDER


Verdict: TypeAlias = Delivered | DeadToken | Again | Ours
OnVerdict: TypeAlias = Callable[[Claim, Verdict], None]


class PushProvider(Protocol):
    """A way to devices. `at_once`: pushes that are made in one turn of the loop; what is more waits for the next."""

    at_once: int

    def send(self, claims: Sequence[Claim], on_verdict: OnVerdict) -> None:
        """Start these pushes; `on_verdict` is called in the loop, once for each, soon or at once. Never raises."""
        ...


class NullProvider:
    """APNs null (`AN`): answers as if delivered, sends nothing. For testing a server from an app."""

    at_once = AT_ONCE

    def send(self, claims: Sequence[Claim], on_verdict: OnVerdict) -> None:
        """See `PushProvider`."""
        for claim in claims:
            on_verdict(claim, Delivered(claim.entries))
