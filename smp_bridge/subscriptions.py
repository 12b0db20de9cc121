"""What the SMP agent and its owner tell each other. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from smp_bridge import smp
from smp_bridge.address import ServerAddress
from smp_bridge.client import Event
from smp_bridge.identity import Credentials
from smp_bridge.transmission import AuthKey, Err

_TEMPORARY: Final = frozenset(["INTERNAL", "STORE", "QUOTA", "EXPIRED"])


@dataclass(frozen=True, slots=True)
class Subscription:
    """One queue to be subscribed: the owner's `ref`, and what NSUB needs; `tag`: a byte that comes back."""

    ref: int
    notifier_id: bytes = field(repr=False)
    notifier_key: AuthKey = field(repr=False)
    tag: int = 0


class Outcome(StrEnum):
    """What an NSUB came to. Only these are final: what is temporary is tried again, without an outcome."""

    SUBSCRIBED = "subscribed"
    ASSOCIATED = "associated"  # subscribed, and the session's service has it from now on
    AUTH = "auth"
    SERVICE = "service"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of an NSUB; `error`: the server's words, if it is ERROR."""

    ref: int
    tag: int
    outcome: Outcome
    error: str = ""


class ConnectFailure(StrEnum):
    """Why a server cannot be connected to."""

    RESOLVE = "resolve"
    NOT_ALLOWED = "not_allowed"
    PROXY = "proxy"
    TCP = "tcp"
    TIMEOUT = "timeout"
    TLS = "tls"
    IDENTITY = "identity"  # someone may be impersonating it
    HANDSHAKE = "handshake"


class Subscriptions(Protocol):
    """The agent's owner: where subscriptions are kept and what happened to them goes."""

    async def wanted(self, server: ServerAddress) -> bool:
        """Whether the server has any subscription that should be active, and may be connected to."""
        ...

    async def service(self, server: ServerAddress) -> Credentials | None:
        """The certificate to be a service with on this server, if the owner wants to be one."""
        ...

    async def connected(self, server: ServerAddress, service_id: bytes | None) -> bool:
        """A new session begins: no subscription is active in it yet. Whether any is associated with this service."""
        ...

    async def service_subscribed(self, server: ServerAddress, count: int | None) -> bool:
        """NSUBS says that the service has so many queues on the server; None: ERR SERVICE.

        Whether the pages have more to give after that: what turned out not to be associated.
        """
        ...

    async def page(self, server: ServerAddress, limit: int) -> Sequence[Subscription]:
        """The next subscriptions that this session has not been given yet, `limit` at most; none: that was all."""
        ...

    async def load(self, server: ServerAddress, refs: Sequence[int]) -> Sequence[Subscription]:
        """These subscriptions, as far as they should still be active."""
        ...

    async def results(self, server: ServerAddress, results: Sequence[Result]) -> None:
        """NSUBs were answered in the current session."""
        ...

    async def disconnected(self, server: ServerAddress) -> None:
        """The session ended: none of the server's subscriptions is active."""
        ...

    async def events(self, server: ServerAddress, events: Sequence[Event]) -> None:
        """NMSG, END, DELD, ENDS of one block. The next block is not read before this returns."""
        ...

    def connect_failed(self, server: ServerAddress, failure: ConnectFailure) -> None:
        """A server could not be connected to. It was logged, and will be tried again."""
        ...

    def service_refused(self, server: ServerAddress) -> None:
        """The server does not take the service: it is subscribed without one for a while."""
        ...


def outcome(answer: object, service_id: bytes | None) -> tuple[Outcome, str] | None:
    """What the answer to an NSUB means, with the server's words if it is an error; None if it is to be tried again."""
    match answer:
        case None:
            return None
        case smp.Ok():
            return Outcome.SUBSCRIBED, ""
        case smp.SOk(service_id=associated):
            own = associated is not None and associated == service_id
            return (Outcome.ASSOCIATED if own else Outcome.SUBSCRIBED), ""
        case Err(code="AUTH"):
            return Outcome.AUTH, ""
        case Err(code="SERVICE"):
            return Outcome.SERVICE, ""
        case Err(code=code):
            return None if code in _TEMPORARY else (Outcome.ERROR, str(answer))
        case Exception():
            return Outcome.ERROR, str(answer)
        case _:
            return Outcome.ERROR, f"unexpected answer {type(answer).__name__}"
