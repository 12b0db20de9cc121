"""What metrics show of the sessions with SMP servers."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from ntf_server.observe.condition import LASTING
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Gauge, ServerGauge
from ntf_server.smp.server_session import ServerSession
from smp_bridge.address import ServerAddress
from smp_bridge.agent import Agent


def show(metrics: Metrics, agent: Agent[ServerSession], sessions: Mapping[ServerAddress, ServerSession]) -> None:
    """Have these read, as they are then."""
    metrics.gauge(Gauge.SMP_CONNECTING, partial(agent.connecting, proven=True))
    metrics.gauge(Gauge.SMP_CONNECTING_NEW, partial(agent.connecting, proven=False))

    def away() -> Iterator[tuple[ServerAddress, float]]:
        return ((server, 1) for server, proven, seconds in agent.away() if proven and seconds >= LASTING)

    metrics.server_gauge(ServerGauge.AWAY, away)

    def show_of_each(name: ServerGauge, value: Callable[[ServerSession], int]) -> None:
        metrics.server_gauge(name, lambda: ((server, value(session)) for server, session in sessions.items()))

    show_of_each(ServerGauge.SESSIONS, lambda _: 1)
    show_of_each(ServerGauge.SERVICES, lambda session: session.service)
    show_of_each(ServerGauge.SUBSCRIPTIONS, lambda session: session.confirmed)
    show_of_each(ServerGauge.PENDING, lambda session: len(session.missing))
