"""The text that Prometheus reads, by the parsers of others."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from scrape import sample

from ntf_server.observe.exposition import Exposition
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Gauge, Histogram, PairCounter, ServerCounter
from smp_bridge.address import ServerAddress

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN = "application/openmetrics-text; version=1.0.0; charset=utf-8"
OF_PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;"
    "q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain", TEXT),
        ("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", TEXT),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text ; version=1.0.0 ; q=0.000, */*", TEXT),
        ("application/openmetrics-textile", TEXT),
        (OF_PROMETHEUS, OPEN),
        ("application/openmetrics-text", OPEN),
        ("text/plain;q=0.1,  Application/OpenMetrics-Text ;version=7", OPEN),
        ("application/openmetrics-text;version=\xff;;=", OPEN),
    ],
)
def test_what_is_asked_for(accept: str, kind: str) -> None:
    page = Exposition(Metrics()).page(accept)
    assert page.content_type == kind
    assert page.text.endswith("# EOF\n") == (kind == OPEN)


def test_both_formats_say_the_same() -> None:
    metrics = Metrics(["simplex.example"])
    metrics.count_pair(PairCounter.PUSHES_DELIVERED, "AP", "check", 7)
    metrics.observe(Histogram.STORE_COMMIT, 0.02)
    metrics.count_server(ServerCounter.RECEIVED, ServerAddress("smp", ("a.simplex.example",), "", bytes(32)), 3)
    metrics.gauge(Gauge.CLIENT_SESSIONS, lambda: 2.5)
    show = Exposition(metrics)
    text = [s for f in parse_text(show.page().text) for s in f.samples if s.name.startswith("ntf_")]
    open_ = [s for f in parse_open_metrics(show.page(OPEN).text) for s in f.samples if s.name.startswith("ntf_")]
    assert text == open_
    assert {s.name for s in text} >= {PairCounter.PUSHES_DELIVERED, Gauge.CLIENT_SESSIONS}
    assert sample(metrics, PairCounter.PUSHES_DELIVERED, provider="AP", kind="check") == 7


def test_the_process_is_shown_too() -> None:
    metrics = Metrics()
    assert sample(metrics, "process_resident_memory_bytes") > 10**6
    assert sample(metrics, "process_open_fds") >= 3
    assert abs(sample(metrics, "process_start_time_seconds") - time.time()) < 3600


@given(st.floats())
def test_any_number_can_be_read_back(value: float) -> None:
    metrics = Metrics()
    metrics.gauge(Gauge.CLIENT_SESSIONS, lambda: value)
    read = sample(metrics, Gauge.CLIENT_SESSIONS)
    assert read == value or (math.isnan(read) and math.isnan(value))


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#,;/@[]:"), min_size=1))
def test_any_host_can_be_a_label(name: str) -> None:
    metrics = Metrics(["simplex.example"])
    host = f"{name}.simplex.example"
    metrics.count_server(ServerCounter.RECEIVED, ServerAddress("smp", (host,), "", bytes(32)))
    assert sample(metrics, ServerCounter.RECEIVED, server=host.lower()) == 1
    list(parse_open_metrics(Exposition(metrics).page(OPEN).text))
