"""What is counted, and when gauges are read."""

import pytest
from prometheus_client.samples import Sample
from scrape import sample, samples

from ntf_server.observe.metrics import MAX_HOSTS, Metrics
from ntf_server.observe.names import (
    WRONG_ADDRESS,
    Counter,
    Gauge,
    Histogram,
    Info,
    KindCounter,
    KindGauge,
    PairCounter,
    ServerCounter,
    ServerGauge,
)
from smp_bridge.address import ServerAddress
from smp_bridge.failure import ConnectFailure
from smp_bridge.ntf import Provider

OWN = ("simplex.example", ".smp.example.org")


def server(*hosts: str, port: str = "") -> ServerAddress:
    return ServerAddress("smp", hosts, port, bytes(32))


def samples_of(metrics: Metrics, name: str) -> list[Sample]:
    return [s for s in samples(metrics) if s.name == name]


def shown(metrics: Metrics, *names: str) -> dict[tuple[str, str], float]:
    """(name, its one label's value, or empty) of these, or of all of ours."""
    found = [s for s in samples(metrics) if (s.name in names if names else s.name.startswith("ntf_"))]
    return {(s.name, next(iter(s.labels.values()), "")): s.value for s in found}


# --- counting


def test_plain_counters() -> None:
    metrics = Metrics()
    assert metrics.value(Counter.AUDITED) == 0
    metrics.count(Counter.AUDITED)
    metrics.count(Counter.AUDITED, 41)
    assert metrics.value(Counter.AUDITED) == 42
    assert sample(metrics, Counter.AUDITED) == 42


@pytest.mark.parametrize("name", KindCounter)
def test_all_kinds_are_shown_from_the_start_and_counted_apart(name: KindCounter) -> None:
    metrics = Metrics()
    expected: dict[tuple[str, str], float] = {(name, kind): 0 for kind in name.kinds}
    assert shown(metrics, name) == expected
    for i, kind in enumerate(name.kinds):
        metrics.count_kind(name, kind, i + 1)
        expected[name, kind] = i + 1
        assert metrics.value(name, kind) == i + 1
    assert shown(metrics, name) == expected
    assert sample(metrics, name, **{name.label: name.kinds[-1]}) == len(name.kinds)


@pytest.mark.parametrize("kind", ["", "nonsense", "AUTH"])
def test_other_kinds_are_an_error_and_not_counted(kind: str) -> None:
    metrics = Metrics()
    before = shown(metrics)
    with pytest.raises(ValueError, match="has no kind"):
        metrics.count_kind(KindCounter.SUBSCRIPTIONS_REFUSED, kind)
    with pytest.raises(ValueError, match="has no kind"):
        metrics.value(KindCounter.SUBSCRIPTIONS_REFUSED, kind)
    assert shown(metrics) == before


def test_pairs_are_counted_apart_and_their_second_labels_are_bounded_too() -> None:
    metrics = Metrics()
    name = PairCounter.PUSHES_DELIVERED
    assert len(samples_of(metrics, name)) == len(name.kinds) * len(name.seconds)
    metrics.count_pair(name, "AP", "messages", 3)
    metrics.count_pair(name, "AP", "check")
    metrics.count_pair(name, Provider.FCM, "check")
    assert sample(metrics, name, provider="AP", kind="messages") == 3
    assert sample(metrics, name, provider="FC", kind="check") == 1
    assert (metrics.value(name, "AP"), metrics.value(name, "FC"), metrics.value(name, "WP")) == (4, 1, 0)
    for kind, second in (("AP", "nonsense"), ("nonsense", "check")):
        with pytest.raises(ValueError, match=r"has no (kind|provider) 'nonsense'|has no kind"):
            metrics.count_pair(name, kind, second)
    assert len(samples_of(metrics, name)) == len(name.kinds) * len(name.seconds)


def test_members_of_an_enum_are_kinds() -> None:
    metrics = Metrics()
    assert set(KindCounter.SMP_CONNECT_FAILED.kinds) == {*ConnectFailure, WRONG_ADDRESS}
    assert set(PairCounter.PUSHES_DELIVERED.kinds) == set(Provider)
    metrics.count_kind(KindCounter.SMP_CONNECT_FAILED, ConnectFailure.IDENTITY)
    assert metrics.value(KindCounter.SMP_CONNECT_FAILED, "identity") == 1
    assert sample(metrics, KindCounter.SMP_CONNECT_FAILED, kind="identity") == 1


# --- times


def test_what_took_how_long() -> None:
    metrics = Metrics()
    name = Histogram.PUSH_ANSWERED
    metrics.observe(name, 0.005, "AP")  # a bound counts to its bucket
    for _ in range(2):
        metrics.observe(name, 0.3, Provider.APNS)
    metrics.observe(name, 7000.0, "AP")
    metrics.observe(name, 1.0, "FC")
    buckets = {s.labels["le"]: s.value for s in samples_of(metrics, f"{name}_bucket") if s.labels["provider"] == "AP"}
    assert list(buckets) == [*map(str, name.buckets), "+Inf"]
    assert [buckets[le] for le in ("0.005", "0.25", "0.5", "30.0", "+Inf")] == [1, 1, 3, 3, 4]
    assert sample(metrics, f"{name}_count", provider="AP") == 4
    assert sample(metrics, f"{name}_sum", provider="AP") == 0.005 + 0.6 + 7000
    assert sample(metrics, f"{name}_count", provider="WP") == 0
    with pytest.raises(KeyError):
        metrics.observe(name, 1.0, "nonsense")


@pytest.mark.parametrize("name", Histogram)
def test_buckets_grow(name: Histogram) -> None:
    assert list(name.buckets) == sorted(set(name.buckets)) and name.buckets[0] > 0


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
    assert "stranger" not in str(shown(metrics))
    assert shown(metrics, name, name.other) == {
        ("ntf_notifications_received_total", "smp1.simplex.example"): 5,
        ("ntf_notifications_received_total", "smp2.simplex.example"): 1,
        ("ntf_notifications_received_other_total", ""): 100,
    }


def test_names_that_are_invented_in_an_own_domain_take_no_memory_without_bound() -> None:
    metrics = Metrics(OWN)
    for i in range(MAX_HOSTS + 5):
        metrics.count_server(ServerCounter.RECEIVED, server(f"{i}.simplex.example"))
    metrics.count_server(ServerCounter.RECEIVED, server("0.simplex.example"))
    assert metrics.value(ServerCounter.RECEIVED, "0.simplex.example") == 2
    assert metrics.value(ServerCounter.RECEIVED) == 5
    assert len(shown(metrics, ServerCounter.RECEIVED)) == MAX_HOSTS


# --- gauges


def test_gauges_are_read_when_they_are_shown() -> None:
    metrics = Metrics()
    assert not shown(metrics, Gauge.CLIENT_SESSIONS)
    value = 1.5
    metrics.gauge(Gauge.CLIENT_SESSIONS, lambda: value)
    assert sample(metrics, Gauge.CLIENT_SESSIONS) == 1.5
    value = 2
    assert sample(metrics, Gauge.CLIENT_SESSIONS) == 2


def test_gauges_of_kinds_show_those_that_are_there() -> None:
    metrics = Metrics()
    values: dict[str, float] = {"FC": 2, Provider.APNS: 0.5, "a stranger's": 7}
    metrics.kind_gauge(KindGauge.OLDEST_DUE, lambda: values)
    assert shown(metrics, KindGauge.OLDEST_DUE) == {(KindGauge.OLDEST_DUE, "AP"): 0.5, (KindGauge.OLDEST_DUE, "FC"): 2}
    values.clear()
    assert not shown(metrics, KindGauge.OLDEST_DUE)


def test_what_does_not_change_is_shown_as_labels() -> None:
    metrics = Metrics()
    metrics.info(Info.BUILD, {"version": "1.2.3", "store": 'a "store"'})
    assert sample(metrics, Info.BUILD, version="1.2.3", store='a "store"') == 1


def test_server_gauges_add_up_what_has_one_label() -> None:
    metrics = Metrics(OWN)
    name = ServerGauge.SUBSCRIPTIONS
    assert not shown(metrics, name)
    pairs: list[tuple[ServerAddress, float]] = [
        (server("smp1.simplex.example"), 10),
        (server("SMP1.simplex.example", port="443"), 5),
        (server("smp2.simplex.example"), 0),
        (server("stranger1.example"), 7),
        (server("stranger2.example"), 1),
        (server("stranger3.example"), 0),
    ]
    metrics.server_gauge(name, lambda: iter(pairs))
    names = name, name.other, name.other_servers
    assert shown(metrics, *names) == {
        ("ntf_subscriptions_active", "smp1.simplex.example"): 15,
        ("ntf_subscriptions_active", "smp2.simplex.example"): 0,
        ("ntf_subscriptions_active_other", ""): 8,
        ("ntf_subscriptions_active_other_servers", ""): 2,
    }
    pairs.clear()
    assert sum(shown(metrics, *names).values()) == 0
