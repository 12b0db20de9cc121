"""How SMP servers are told of to operators."""

from ntf_server.smp.looks import looks
from ntf_server.smp.server_session import ServerSession
from ntf_server.store.records import Session
from smp_bridge.address import ServerAddress
from smp_bridge.agent import Way
from smp_bridge.failure import ConnectFailure

OWN, OTHER = (ServerAddress("smp", (host,), "", bytes(32)) for host in ("smp.example.org", "other.example"))


def test_what_is_known_of_a_session() -> None:
    session = ServerSession(Session(OWN, 1), service=True, confirmed=7, complete=True)
    session.missing.update([1, 2])
    ways = [
        Way(OWN, True, True, 60.0, None, "", None, None),
        Way(OTHER, False, False, 5.0, ConnectFailure.TCP, "refused", 4.0, 3.0),
    ]
    own, other = looks(ways, {OWN: session}, lambda server: server == OWN)
    assert (own.way, own.own, own.service, own.active, own.pending, own.complete) == (ways[0], True, True, 7, 2, True)
    session.proved = True
    ways[0] = ways[0]._replace(is_proven=False)
    assert looks(ways, {OWN: session}, lambda _: True)[0].way.is_proven
    assert (other.way, other.own, other.service, other.active) == (ways[1], False, False, 0)
