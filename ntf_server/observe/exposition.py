"""The text that Prometheus and others read: prometheus-client's formats, of a registry of our own.

Loaded by who serves it only: many relays have nobody who asks.
"""

import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, NamedTuple

from prometheus_client import exposition as text_format
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as open_metrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from ntf_server.observe.metrics import Family, HistogramFamily, Metrics

_OPEN_METRICS: Final = "application/openmetrics-text"
_NEVER: Final = re.compile(r"q=0(\.0*)?")


class Page(NamedTuple):
    """What a scrape gets."""

    content_type: str
    text: str


class Exposition:
    """Shows metrics, as they are when they are asked for, and those of the process."""

    def __init__(self, metrics: Metrics) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Families(metrics))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def page(self, accept: str = "") -> Page:
        """As OpenMetrics 1.0 where a header `Accept` names that, else in the text format 0.0.4."""
        if _takes_open_metrics(accept):
            shown: bytes = open_metrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]
            return Page(open_metrics.CONTENT_TYPE_LATEST, shown.decode())
        return Page(text_format.CONTENT_TYPE_PLAIN_0_0_4, text_format.generate_latest(self._registry).decode())


class _Families(Collector):
    """All metrics of ours."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        yield from map(_shown, self._metrics.families())
        yield from map(_shown_histogram, self._metrics.histograms())


def _shown(family: Family) -> Metric:
    of_kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    shown = of_kind(family.name, family.help, labels=family.labels)
    for labels, value in family.samples:
        shown.add_metric(labels, value)
    return shown


def _shown_histogram(family: HistogramFamily) -> Metric:
    shown = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    for labels, found in family.samples:
        bounds = [str(bound) for bound in found.bounds] + ["+Inf"]
        shown.add_metric(labels, list(zip(bounds, accumulate(found.counts), strict=True)), found.total)
    return shown


def _takes_open_metrics(accept: str) -> bool:
    """Whether it is among the media ranges of a header `Accept` (RFC 9110, section 12.5.1), and not by `q=0`."""
    for media_range in accept.lower().split(","):
        name, *parameters = [part.strip() for part in media_range.split(";")]
        if name == _OPEN_METRICS and not any(_NEVER.fullmatch(p) for p in parameters):
            return True
    return False
