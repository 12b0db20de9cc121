"""How the SMP servers of a node are, for operators."""

from collections.abc import Callable, Iterable, Mapping

import msgspec

from ntf_server.smp.server_session import ServerSession
from smp_bridge.address import ServerAddress
from smp_bridge.agent import Way


class ServerLook(msgspec.Struct, frozen=True):
    """A server that this node speaks for, or tries to. `own`: in one of the own domains; `service`: our service has the
    session; `active`, `pending`: subscriptions that it confirmed, and that were asked for; `complete`: all that should
    be were asked for.
    """

    way: Way
    own: bool
    service: bool = False
    active: int = 0
    pending: int = 0
    complete: bool = False

    @property
    def name(self) -> str:
        """The server's address."""
        return str(self.way.server)


def looks(
    ways: Iterable[Way], sessions: Mapping[ServerAddress, ServerSession], is_own: Callable[[ServerAddress], bool]
) -> list[ServerLook]:
    """Of each."""
    found = []
    for way in ways:
        session, own = sessions.get(way.server), is_own(way.server)
        if session is None:
            found.append(ServerLook(way, own))
        else:
            counts = session.confirmed, len(session.missing), session.complete
            proved = way._replace(is_proven=way.is_proven or session.proved)
            found.append(ServerLook(proved, own, session.service, *counts))
    return found
