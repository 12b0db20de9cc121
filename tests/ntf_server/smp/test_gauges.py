"""What metrics show of sessions with SMP servers."""

from collections.abc import Iterator
from typing import Any, cast

from scrape import sample, samples

from ntf_server.observe.condition import LASTING
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Gauge, ServerGauge
from ntf_server.smp import gauges
from ntf_server.smp.server_session import ServerSession
from ntf_server.store.records import Session
from smp_bridge.address import ServerAddress


class Connecting:
    def connecting(self, *, proven: bool) -> int:
        return 5 if proven else 7

    def away(self) -> Iterator[tuple[ServerAddress, bool, float]]:
        yield address("mail.own.example"), True, LASTING
        yield address("new.own.example"), False, 9 * LASTING  # a stranger may have invented it
        yield address("back.own.example"), True, LASTING - 1
        yield address("c.example"), True, LASTING
        yield address("d.example"), True, 9 * LASTING
        yield address("e.example"), False, 9 * LASTING


def address(host: str) -> ServerAddress:
    return ServerAddress("smp", (host,), "", bytes(32))


def session(host: str, *, service: bool = False, **values: Any) -> tuple[ServerAddress, ServerSession]:
    server = address(host)
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
    of_sessions = [name for name in ServerGauge if name is not ServerGauge.AWAY]
    assert [sample(metrics, name, server="own.example") for name in of_sessions] == [1, 1, 9, 2]
    assert [sample(metrics, name.other) for name in of_sessions] == [2, 1, 3, 1]
    assert [sample(metrics, name.other_servers) for name in of_sessions] == [2, 1, 1, 1]
    assert (sample(metrics, Gauge.SMP_CONNECTING), sample(metrics, Gauge.SMP_CONNECTING_NEW)) == (5, 7)


def test_only_who_was_there_before_and_is_not_back_soon_is_away() -> None:
    metrics, agent = Metrics(["own.example"]), cast("Any", Connecting())
    gauges.show(metrics, agent, {})
    of_own = [s.labels for s in samples(metrics) if s.name == ServerGauge.AWAY]
    assert of_own == [{"server": "mail.own.example"}]
    assert sample(metrics, ServerGauge.AWAY.other) == sample(metrics, ServerGauge.AWAY.other_servers) == 2
