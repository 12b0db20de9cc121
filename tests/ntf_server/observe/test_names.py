"""The table of names: it is whole, and the documentation agrees with it."""

import re
from functools import partial
from pathlib import Path

from ntf_server.observe import names
from ntf_server.observe.metrics import Family, HistogramFamily, Metrics
from ntf_server.observe.names import Gauge, Info, KindGauge, Metric, PairGauge, ServerGauge

PAGE = Path(__file__).parents[3] / "docs/reference/metrics.md"


def families() -> list[Family | HistogramFamily]:
    """All that there can be."""
    metrics = Metrics()
    for gauge in Gauge:
        metrics.gauge(gauge, lambda: 1)
    for kind_gauge in KindGauge:
        metrics.kind_gauge(kind_gauge, partial(dict.fromkeys, kind_gauge.kinds, 1.0))
    for pair_gauge in PairGauge:
        both = {(kind, second): 1.0 for kind in pair_gauge.kinds for second in pair_gauge.seconds}
        metrics.pair_gauge(pair_gauge, partial(dict, both))
    for info in Info:
        metrics.info(info, {})
    for server_gauge in ServerGauge:
        metrics.server_gauge(server_gauge, list)
    return [*metrics.families(), *metrics.histograms()]


def kind(family: Family | HistogramFamily) -> str:
    return family.kind if isinstance(family, Family) else "histogram"


def tables() -> list[type[Metric]]:
    return [t for t in vars(names).values() if isinstance(t, type) and issubclass(t, Metric) and len(t)]


def test_names_and_types() -> None:
    shown = families()
    assert all(re.fullmatch(r"ntf_[a-z_]+", f.name) for f in shown)
    assert {f.name for f in shown if kind(f) == "counter"} == {f.name for f in shown if f.name.endswith("_total")}
    assert all(f.name.endswith("_seconds") for f in shown if kind(f) == "histogram")
    assert {str(name) for table in tables() for name in table} <= {f.name for f in shown}
    assert len({f.name for f in shown}) == len(shown)
    assert all(f.help.endswith(".") for f in shown)


def test_every_metric_is_documented_with_its_type_and_labels() -> None:
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(ntf_\w+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)}
    shown = families()
    assert set(rows) == {f.name for f in shown}
    for family in shown:
        documented, labels, *_ = re.split(r" *\| *", rows[family.name])
        assert documented == kind(family)
        assert all(f"`{label}`" in labels for label in family.labels), family.name
        assert all(f"`{value}`" in labels for values, _ in family.samples for value in values), family.name


def test_the_page_names_no_metric_that_there_is_not() -> None:
    """Also where it says what the reference's names are here."""
    named = set(re.findall(r"`(ntf_[a-z_]+)(?:\{[^`]*)?`", PAGE.read_text()))
    assert named == {f.name for f in families()}
