"""What is counted, and the text that Prometheus reads."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntf_server.observe.metrics import (
    MAX_HOSTS,
    WRONG_ADDRESS,
    Counter,
    Gauge,
    KindCounter,
    Metrics,
    ServerCounter,
    ServerGauge,
)
from smp_bridge.address import ServerAddress
from smp_bridge.failure import ConnectFailure
from smp_bridge.ntf import Provider

PAGE = Path(__file__).parents[3] / "docs/reference/metrics.md"
OWN = ("simplex.example", ".smp.example.org")

Sample = tuple[str, tuple[tuple[str, str], ...]]

_SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{([a-zA-Z_]\w*)="((?:[^"\\\n]|\\["\\n])*)"\})? ([^ ]+)')
_UNESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def server(*hosts: str, port: str = "") -> ServerAddress:
    return ServerAddress("smp", hosts, port, bytes(32))


def parse(text: str) -> tuple[dict[str, str], dict[Sample, float]]:
    """(types, samples) as the format's specification reads them; whatever it does not allow is an error."""
    types: dict[str, str] = {}
    samples: dict[Sample, float] = {}
    helped: list[str] = []
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            name, help_text = line.removeprefix("# HELP ").split(" ", 1)
            assert help_text
            assert name not in helped
            helped.append(name)
        elif line.startswith("# TYPE "):
            name, kind = line.removeprefix("# TYPE ").split(" ")
            assert name == helped[-1]
            types[name] = kind
        else:
            m = _SAMPLE.fullmatch(line)
            assert m, line
            assert m[1] == helped[-1]  # all lines of a metric in one group
            value = re.sub(r"\\.", lambda e: _UNESCAPED[e[0]], m[3] or "")
            key = m[1], ((m[2], value),) if m[2] else ()
            assert key not in samples
            samples[key] = float(m[4])
    assert set(types) == set(helped)
    return types, samples


def full(metrics: Metrics) -> Metrics:
    """With every gauge."""
    for gauge in Gauge:
        metrics.gauge(gauge, lambda: 1)
    for server_gauge in ServerGauge:
        metrics.server_gauge(server_gauge, list)
    return metrics


# --- counting


def test_plain_counters() -> None:
    metrics = Metrics()
    assert metrics.value(Counter.AUDITED) == 0
    metrics.count(Counter.AUDITED)
    metrics.count(Counter.AUDITED, 41)
    assert metrics.value(Counter.AUDITED) == 42
    assert parse(metrics.render())[1][Counter.AUDITED, ()] == 42


@pytest.mark.parametrize("name", KindCounter)
def test_all_kinds_are_shown_from_the_start_and_counted_apart(name: KindCounter) -> None:
    metrics = Metrics()
    expected: dict[Sample, float] = {(name, ((name.label, kind),)): 0 for kind in name.kinds}
    assert {k: v for k, v in parse(metrics.render())[1].items() if k[0] == name} == expected
    for i, kind in enumerate(name.kinds):
        metrics.count_kind(name, kind, i + 1)
        expected[name, ((name.label, kind),)] = i + 1
        assert metrics.value(name, kind) == i + 1
    assert {k: v for k, v in parse(metrics.render())[1].items() if k[0] == name} == expected


@pytest.mark.parametrize("kind", ["", "nonsense", "AUTH"])
def test_other_kinds_are_an_error_and_not_counted(kind: str) -> None:
    metrics = Metrics()
    before = metrics.render()
    with pytest.raises(ValueError, match="has no kind"):
        metrics.count_kind(KindCounter.SUBSCRIPTIONS_REFUSED, kind)
    with pytest.raises(ValueError, match="has no kind"):
        metrics.value(KindCounter.SUBSCRIPTIONS_REFUSED, kind)
    assert metrics.render() == before


def test_members_of_an_enum_are_kinds() -> None:
    metrics = Metrics()
    assert set(KindCounter.SMP_CONNECT_FAILED.kinds) == {*ConnectFailure, WRONG_ADDRESS}
    assert set(KindCounter.PUSHES_DELIVERED.kinds) == set(Provider)
    metrics.count_kind(KindCounter.SMP_CONNECT_FAILED, ConnectFailure.IDENTITY)
    assert metrics.value(KindCounter.SMP_CONNECT_FAILED, "identity") == 1
    assert '{kind="identity"} 1\n' in metrics.render()


# --- own servers


@pytest.mark.parametrize(
    ("own", "hosts"),
    [
        (True, ["simplex.example", "SIMPLEX.Example", "smp1.simplex.example", "a.b.simplex.example"]),
        (True, ["smp.example.org", "a.smp.example.org"]),
        (False, ["notsimplex.example", "example", "simplex.example.org", "simplex.exampleorg", "example.org"]),
        (False, ["10.0.0.1", "::1", "a.onion"]),
    ],
)
def test_own_servers(own: bool, hosts: list[str]) -> None:
    metrics = Metrics(OWN)
    assert [metrics.is_own(server(h)) for h in hosts] == [own] * len(hosts)
    assert Metrics(["Simplex.EXAMPLE"]).is_own(server("simplex.example"))


@pytest.mark.parametrize("domains", [(), ("",), (".",)])
def test_nobody_is_own_without_domains(domains: tuple[str, ...]) -> None:
    metrics = Metrics(domains)
    assert not any(map(metrics.is_own, [server("smp.example.org"), server("smp.example.org."), server("10.0.0.1")]))


def test_the_first_host_decides() -> None:
    metrics = Metrics(OWN)
    assert metrics.is_own(server("simplex.example", "abc.onion"))
    assert not metrics.is_own(server("evil.example", "simplex.example"))


def test_own_servers_are_counted_per_host_and_others_together() -> None:
    metrics = Metrics(OWN)
    name = ServerCounter.RECEIVED
    metrics.count_server(name, server("smp1.simplex.example"), 2)
    metrics.count_server(name, server("SMP1.simplex.example", "abc.onion", port="443"), 3)
    metrics.count_server(name, server("smp2.simplex.example"))
    for i in range(100):
        metrics.count_server(name, server(f"stranger{i}.example"))
    assert metrics.value(name, "smp1.simplex.example") == metrics.value(name, "SMP1.simplex.example") == 5
    assert metrics.value(name, "smp2.simplex.example") == 1
    assert metrics.value(name, "stranger1.example") == 0
    assert metrics.value(name) == 100
    text = metrics.render()
    assert "stranger" not in text
    _, samples = parse(text)
    assert {k: v for k, v in samples.items() if k[0] in (name, name.other)} == {
        ("ntf_notifications_received_total", (("server", "smp1.simplex.example"),)): 5,
        ("ntf_notifications_received_total", (("server", "smp2.simplex.example"),)): 1,
        ("ntf_notifications_received_other_total", ()): 100,
    }


def test_names_that_are_invented_in_an_own_domain_take_no_memory_without_bound() -> None:
    metrics = Metrics(OWN)
    for i in range(MAX_HOSTS + 5):
        metrics.count_server(ServerCounter.RECEIVED, server(f"{i}.simplex.example"))
    metrics.count_server(ServerCounter.RECEIVED, server("0.simplex.example"))
    assert metrics.value(ServerCounter.RECEIVED, "0.simplex.example") == 2
    assert metrics.value(ServerCounter.RECEIVED) == 5
    assert metrics.render().count("ntf_notifications_received_total{") == MAX_HOSTS


# --- gauges


def test_gauges_are_read_when_they_are_rendered() -> None:
    metrics = Metrics()
    assert Gauge.TOKENS_DUE not in metrics.render()
    value = 1.5
    metrics.gauge(Gauge.TOKENS_DUE, lambda: value)
    assert parse(metrics.render())[1][Gauge.TOKENS_DUE, ()] == 1.5
    value = 2
    assert parse(metrics.render())[1][Gauge.TOKENS_DUE, ()] == 2


def test_server_gauges_add_up_what_has_one_label() -> None:
    metrics = Metrics(OWN)
    name = ServerGauge.SUBSCRIPTIONS
    assert name not in metrics.render()
    pairs: list[tuple[ServerAddress, float]] = [
        (server("smp1.simplex.example"), 10),
        (server("SMP1.simplex.example", port="443"), 5),
        (server("smp2.simplex.example"), 0),
        (server("stranger1.example"), 7),
        (server("stranger2.example"), 1),
        (server("stranger3.example"), 0),
    ]
    metrics.server_gauge(name, lambda: iter(pairs))
    types, samples = parse(metrics.render())
    assert {k: v for k, v in samples.items() if k[0].startswith(name)} == {
        ("ntf_subscriptions_active", (("server", "smp1.simplex.example"),)): 15,
        ("ntf_subscriptions_active", (("server", "smp2.simplex.example"),)): 0,
        ("ntf_subscriptions_active_other", ()): 8,
        ("ntf_subscriptions_active_other_servers", ()): 2,
    }
    assert types["ntf_subscriptions_active"] == types["ntf_subscriptions_active_other_servers"] == "gauge"
    pairs.clear()
    assert sum(v for k, v in parse(metrics.render())[1].items() if k[0].startswith(name)) == 0


# --- the format


@given(st.floats())
def test_any_number_can_be_read_back(value: float) -> None:
    metrics = Metrics()
    metrics.gauge(Gauge.START_TIME, lambda: value)
    read = parse(metrics.render())[1][Gauge.START_TIME, ()]
    assert read == value or (math.isnan(read) and math.isnan(value))


@pytest.mark.parametrize(("value", "text"), [(math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN"), (3, "3")])
def test_how_numbers_are_written(value: float, text: str) -> None:
    metrics = Metrics()
    metrics.gauge(Gauge.START_TIME, lambda: value)
    assert metrics.render().endswith(f"\n{Gauge.START_TIME} {text}\n")


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#,;/@[]:"), min_size=1))
def test_any_host_can_be_a_label(name: str) -> None:
    metrics = Metrics(OWN)
    metrics.count_server(ServerCounter.RECEIVED, server(f"{name}.simplex.example"))
    label = ("server", f"{name}.simplex.example".lower())
    assert parse(metrics.render())[1][ServerCounter.RECEIVED, (label,)] == 1


def test_names_and_types() -> None:
    types, _ = parse(full(Metrics()).render())
    assert all(re.fullmatch(r"ntf_[a-z_]+", name) for name in types)
    assert {name for name, kind in types.items() if kind == "counter"} == {n for n in types if n.endswith("_total")}
    members = [*Counter, *KindCounter, *ServerCounter, *Gauge, *ServerGauge]
    assert set(members) <= set(types)
    assert len({str(m) for m in members}) == len(members)


def test_every_metric_is_documented() -> None:
    page = PAGE.read_text()
    types, samples = parse(full(Metrics()).render())
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(ntf_\w+)` \| (.*) \|$", page, re.MULTILINE)}
    assert set(rows) == set(types)
    assert {n: rows[n].split(" | ")[0] for n in rows} == types
    for name, labels in samples:
        assert all(f"`{label}`" in rows[name] and f"`{value}`" in rows[name] for label, value in labels)
