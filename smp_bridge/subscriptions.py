"""What the SMP agent and its owner tell each other. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from smp_bridge import smp
from smp_bridge.address import ServerAddress
from smp_bridge.client import Event
from smp_bridge.failure import ConnectFailure, NsubAnswer
from smp_bridge.identity import Credentials
from smp_bridge.places import Standing
from smp_bridge.service import Associations, Todo
from smp_bridge.transmission import AuthKey

Ref = Any  # the owner's name for a subscription; opaque to the agent, which only hands it back


@dataclass(frozen=True, slots=True)
class NsubRequest:
    """One queue to be subscribed: the owner's `ref`, and what NSUB needs; `tag`: a byte that comes back."""

    ref: Ref = field(repr=False)
    notifier_id: bytes = field(repr=False)
    notifier_key: AuthKey = field(repr=False)
    tag: int = 0


@dataclass(frozen=True, slots=True)
class NsubResult:
    """What an NSUB came to; `error`: the server's words, if the answer is ERROR."""

    ref: Ref = field(repr=False)
    tag: int
    answer: NsubAnswer
    error: str = ""


class SessionHandle(Protocol):
    """A session as its owner knows it. The agent hands it back with all that happens in the session."""

    @property
    def associated(self) -> bool:
        """Whether subscriptions are associated with the session's service: NSUBS subscribes them. Asked once."""
        ...


S = TypeVar("S", bound=SessionHandle)


class NotWantedError(Exception):
    """The owner does not want a session after all. The text says why."""


class Subscriptions(Protocol[S]):
    """The agent's owner: where subscriptions are kept and what happened to them goes.

    Of each session: `connected` first, then the others in any order, then `disconnected`, once; nothing after it. The
    events of all blocks that were received come before `disconnected`, and the next session of the same server is not
    `connected` before `disconnected` of the last one has returned. A method that raises ends the session: what is
    subscribed is asked for anew in the next one. It may be cancelled when the agent is closed (see `Agent.close`).
    """

    async def standing(self, server: ServerAddress) -> Standing | None:
        """What is known of the server; None: it has no subscription that should be active, or may not be connected to.

        Its prefixes are to be those at which a session of it was `connected` that confirmed a subscription.
        """
        ...

    def connect_wait(self, server: ServerAddress, destinations: Sequence[str], proven: bool, /) -> float:
        """Seconds until a connect to the server, which leads to these machines, may begin. It is spent."""
        ...

    async def standing_lost(self, server: ServerAddress) -> None:
        """The server could not be connected to for many times in a row: what it had proved holds no more."""
        ...

    async def given_up(self, server: ServerAddress) -> None:
        """The server is not tried any more: nothing on it is wanted from now on."""
        ...

    async def service(self, server: ServerAddress) -> Credentials | None:
        """The certificate to be a service with on this server, if the owner wants to be one."""
        ...

    async def connected(self, server: ServerAddress, service_id: bytes | None, prefix: str) -> S:
        """A new session begins, in which no subscription is active yet; the owner's handle for it.

        `prefix`: where it leads (`network.prefix`); `service_id`: what the server calls our service in it; None: it is
        none of a service. If this raises, there is no session, and no `disconnected` either. Raises NotWantedError.
        """
        ...

    async def associations(self, session: S) -> Associations:
        """What the session's service should have on the server, now."""
        ...

    async def service_subscribed(self, session: S, said: smp.SOks | None) -> Todo:
        """NSUBS was answered; None: ERR SERVICE. What is to be done: PAGES, if they have more to give after that."""
        ...

    async def audit_page(self, session: S, limit: int) -> Sequence[Ref]:
        """Of an audit of all that is associated, the next ones that are to be subscribed again, when their time has
        come; none: that was all.
        """
        ...

    async def page(self, session: S, limit: int) -> Sequence[NsubRequest]:
        """The next subscriptions that this session has not been given yet, `limit` at most; none: that was all."""
        ...

    async def load(self, session: S, refs: Sequence[Ref]) -> Sequence[NsubRequest]:
        """These subscriptions, as far as they should still be active."""
        ...

    async def results(self, session: S, results: Sequence[NsubResult]) -> None:
        """NSUBs were answered."""
        ...

    async def events(self, session: S, events: Sequence[Event]) -> None:
        """NMSG, END, DELD, ENDS of one block. The next block is not taken before this returns: it is the backpressure.

        If it raises, the connection is closed, this block is lost (and logged), and those that were read go on.
        """
        ...

    def way_was_dead(self, session: S) -> None:
        """The session ends as the server could not be reached any more: what it sent of late may be lost.

        SMP has no acknowledgement of NMSG (wire.md, section 7). Comes before `disconnected`.
        """
        ...

    async def disconnected(self, session: S) -> None:
        """The session ended: none of the server's subscriptions is active."""
        ...

    def connect_failed(self, server: ServerAddress, failure: ConnectFailure) -> None:
        """A server could not be connected to. It was logged, and will be tried again."""
        ...

    def service_refused(self, server: ServerAddress) -> None:
        """The server does not take the service: it is subscribed without one for a while."""
        ...
