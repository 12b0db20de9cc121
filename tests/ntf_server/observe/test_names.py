"""The table of names: it is whole, and the documentation agrees with it."""

import re
from pathlib import Path

from ntf_server.observe.metrics import Family, Metrics
from ntf_server.observe.names import Counter, Gauge, KindCounter, ServerCounter, ServerGauge

PAGE = Path(__file__).parents[3] / "docs/reference/metrics.md"
NAMES = [*Counter, *KindCounter, *ServerCounter, *Gauge, *ServerGauge]


def families() -> list[Family]:
    """All that there can be."""
    metrics = Metrics()
    for gauge in Gauge:
        metrics.gauge(gauge, lambda: 1)
    for server_gauge in ServerGauge:
        metrics.server_gauge(server_gauge, list)
    return list(metrics.families())


def test_names_and_types() -> None:
    shown = families()
    assert all(re.fullmatch(r"ntf_[a-z_]+", f.name) for f in shown)
    assert {f.name for f in shown if f.kind == "counter"} == {f.name for f in shown if f.name.endswith("_total")}
    assert {str(name) for name in NAMES} <= {f.name for f in shown}
    assert len({f.name for f in shown}) == len(shown)
    assert all(f.help.endswith(".") for f in shown)


def test_every_metric_is_documented_with_its_type_and_labels() -> None:
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(ntf_\w+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)}
    shown = families()
    assert set(rows) == {f.name for f in shown}
    for family in shown:
        kind, labels, *_ = re.split(r" *\| *", rows[family.name])
        assert kind == family.kind
        assert all(f"`{label}`" in labels for label in family.labels), family.name
        assert all(f"`{value}`" in labels for values, _ in family.samples for value in values), family.name
