"""What metrics show of sessions with SMP servers."""

from typing import Any

from scrape import sample

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Gauge, ServerGauge
from ntf_server.smp import gauges
from ntf_server.smp.server_session import ServerSession
from ntf_server.store.records import Session
from smp_bridge.address import ServerAddress


class Connecting:
    def connecting(self, *, proven: bool) -> int:
        return 5 if proven else 7


def session(host: str, *, service: bool = False, **values: Any) -> tuple[ServerAddress, ServerSession]:
    server = ServerAddress("smp", (host,), "", bytes(32))
    return server, ServerSession(Session(server, 1), service, **values)


def test_sessions_are_shown_as_they_are_when_they_are_read() -> None:
    metrics, sessions = Metrics(["own.example"]), dict[ServerAddress, ServerSession]()
    agent: Any = Connecting()
    gauges.show(metrics, agent, sessions)
    assert sample(metrics, ServerGauge.SESSIONS.other) == 0
    sessions.update(
        [
            session("own.example", service=True, confirmed=9, missing={1, 2}),
            session("a.example", confirmed=3),
            session("b.example", service=True, missing={3}),
        ]
    )
    shown = {name: sample(metrics, name, server="own.example") for name in ServerGauge}
    assert list(shown.values()) == [1, 1, 9, 2]
    assert [sample(metrics, name.other) for name in ServerGauge] == [2, 1, 3, 1]
    assert [sample(metrics, name.other_servers) for name in ServerGauge] == [2, 1, 1, 1]
    assert (sample(metrics, Gauge.SMP_CONNECTING), sample(metrics, Gauge.SMP_CONNECTING_NEW)) == (5, 7)
