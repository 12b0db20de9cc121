"""What metrics show of how well a relay is, for alerts: the same judgement as `/health`."""

from collections.abc import Callable, Iterable, Mapping

from ntf_server.admin.facts import Parts, store_facts, way_facts
from ntf_server.observe.condition import State, StoreFacts, WayFacts, is_stalled, way_state
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import TROUBLES, Gauge, KindGauge, PairGauge


def show(metrics: Metrics, parts: Parts, up_for: Callable[[], float], clock: Callable[[], float]) -> None:
    """Have these read, as they are then. `up_for`: seconds since the start; `clock`: Unix seconds."""
    metrics.gauge(Gauge.TIME, clock)
    metrics.kind_gauge(KindGauge.STORE_FAILING, lambda: failing(store_facts(parts.store)))
    metrics.pair_gauge(PairGauge.PROVIDER_TROUBLE, lambda: trouble(way_facts(parts), up_for()))
    if store_facts(parts.store).all_shards:
        metrics.gauge(Gauge.STORE_SHARDS_ALL, lambda: store_facts(parts.store).all_shards)
        metrics.gauge(Gauge.STORE_SHARDS_SILENT, lambda: store_facts(parts.store).silent_shards)


def failing(store: StoreFacts) -> Mapping[str, float]:
    """Seconds, by the kind of the last error."""
    return {kind: (store.failing_for or 0.0) * (kind == store.kind) for kind in KindGauge.STORE_FAILING.kinds}


def trouble(ways: Iterable[WayFacts], up_for: float) -> Mapping[tuple[str, str], float]:
    """Seconds, by provider and state."""
    return {(way.name, state): _seconds(way, up_for, state) for way in ways for state in TROUBLES}


def _seconds(way: WayFacts, up_for: float, state: str) -> float:
    if state == "stalled":
        return max(way.oldest_due or 0.0, way.troubled_for or 0.0) if is_stalled(way, up_for) else 0.0
    if way_state(way, up_for) is not State(state):
        return 0.0
    return (way.oldest_due or 0.0) if way.troubled_for is None else way.troubled_for
