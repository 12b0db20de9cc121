"""deploy/prometheus: alerts on metrics that there are, set off by no stranger, each with its section in the docs."""

import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import yaml
from debian import program

from ntf_server.observe import names
from ntf_server.observe.names import Counter, Histogram, KindCounter, Metric, PairMetric, ServerMetric

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "deploy/prometheus"
PAGE = ROOT / "docs/how-to/alerts.md"
FROM_PROMETHEUS = {"up": {"job", "instance"}, "process_start_time_seconds": {"job", "instance"}}
TARGET = {"job", "instance"}  # labels that Prometheus adds
APPLE_AND_GOOGLE = {"AD", "AP", "FC"}
# What alerts may look at, and with which values of labels: what a stranger chooses or causes is in none of them.
OURS: dict[str, dict[str, set[str]]] = {
    "ntf_provider_trouble_seconds": {"provider": APPLE_AND_GOOGLE},
    "ntf_oldest_due_seconds": {"provider": APPLE_AND_GOOGLE},
    "ntf_pushes_refused_total": {"provider": APPLE_AND_GOOGLE, "kind": {"messages", "check"}},
    "ntf_pushes_failed_total": {"provider": APPLE_AND_GOOGLE, "kind": {"messages", "check"}},
    "ntf_pushes_delivered_total": {"provider": APPLE_AND_GOOGLE, "kind": {"messages", "check"}},
    "ntf_store_failing_seconds": {},
    "ntf_store_room_bytes": {},
    "ntf_store_bytes": {},
    "ntf_store_wal_bytes": {},
    "ntf_store_errors_total": {"kind": {"conflict"}},
    "ntf_records_quarantined_total": {},
    "ntf_smp_servers_away": {},  # own ones
    "ntf_smp_sessions": {},
    # Of others: that there is none at all (NtfNoSmpServer).
    "ntf_smp_servers_away_other": {},
    "ntf_smp_sessions_other": {},
    "ntf_loop_lag_seconds": {},
    "ntf_part_failures_total": {},
    "ntf_time_seconds": {},
    "ntf_clock_steps_total": {},
    "ntf_certificate_end_time_seconds": {},
    "ntf_store_shards_held": {},
    "ntf_store_shards": {},
    "ntf_store_shards_silent": {},
    "ntf_store_nodes": {},
}


class Rule(msgspec.Struct, forbid_unknown_fields=True):
    """Of Prometheus's format what is used of it."""

    alert: str
    expr: str
    labels: dict[str, str]
    annotations: dict[str, str]
    for_: str = msgspec.field(name="for", default="0s")


class Group(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    rules: list[Rule]


class File(msgspec.Struct, forbid_unknown_fields=True):
    groups: list[Group]


class Selector(NamedTuple):
    """`matchers`: label, operator, value."""

    metric: str
    matchers: list[tuple[str, str, str]]


def read(file: str) -> Any:
    return yaml.safe_load((PROMETHEUS / file).read_text())


RULES = [rule for group in msgspec.convert(read("alerts.yaml"), File).groups for rule in group.rules]


def known() -> dict[str, dict[str, set[str] | None]]:
    """Of every metric that is shown its labels, with their values; None: any."""
    found: dict[str, dict[str, set[str] | None]] = {}
    for table in vars(names).values():
        for name in table if isinstance(table, type) and issubclass(table, Metric) else ():
            labels: dict[str, set[str] | None] = {name.label: set(name.kinds)} if name.label else {}
            if isinstance(name, PairMetric):
                labels[name.second_label] = set(name.seconds)
            if isinstance(name, ServerMetric):
                found[name.other] = {}
                labels["server"] = None
            if isinstance(name, names.ServerGauge):
                found[name.other_servers] = {}
            if isinstance(name, names.Info):
                labels = dict.fromkeys(("version", "store", "libcurl"))
            if isinstance(name, Histogram):
                found |= {f"{name}_{part}": labels for part in ("sum", "count")}
                found[f"{name}_bucket"] = {**labels, "le": None}
            else:
                found[str(name)] = labels
    return found


KNOWN = known()
IS_COUNTER = {str(c) for t in (Counter, KindCounter, names.PairCounter, names.ServerCounter) for c in t}
IS_COUNTER |= {c.other for c in names.ServerCounter} | {name for name in KNOWN if name.endswith(("_bucket", "_count"))}


def selectors(expr: str) -> list[Selector]:
    """Of an expression in PromQL: what it reads."""
    found = []
    for name, braces in re.findall(r"\b((?:ntf|process|python)_\w+|up)\b(?=\s*(?:\{([^}]*)\}|[^\w(=~!|\"]|$))", expr):
        found.append(Selector(name, re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', braces)))
    for several in re.findall(r'\{__name__=~"([^"]*)"\}', expr):
        found += [Selector(name, []) for name in several.split("|")]
    return found


def wrong(expr: str) -> list[str]:
    """What an expression names that there is not."""
    found = []
    for metric, matchers in selectors(expr):
        if metric.startswith(("process_", "python_")) or metric == "up":
            continue
        labels = KNOWN.get(metric)
        if labels is None:
            found.append(f"no metric {metric}")
            continue
        for label, _, value in matchers:
            if label not in labels.keys() | TARGET:
                found.append(f"{metric} has no label {label}")
            elif (values := labels.get(label)) is not None and "$" not in value:
                found += [f"{metric} has no {label} {v}" for v in value.split("|") if v not in values]
    grouped = {label for by in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expr) for label in re.split(r"\s*,\s*", by)}
    there = TARGET | {label for metric, _ in selectors(expr) for label in KNOWN.get(metric, {})}
    return found + [f"nothing here has a label {label}" for label in grouped - there - {""}]


def counters_that_are_not_rated(expr: str) -> list[str]:
    rated = {s.metric for part in re.findall(r"\b(?:rate|increase)\(([^\[]*)\[", expr) for s in selectors(part)}
    return [s.metric for s in selectors(expr) if s.metric in IS_COUNTER - rated]


def test_what_finds_faults_in_expressions_finds_them() -> None:
    assert wrong('sum by (job) (rate(ntf_pushes_failed_total{provider="AP", kind=~"check|messages"}[5m]))') == []
    assert wrong("ntf_gone") == ["no metric ntf_gone"]
    assert wrong('ntf_tokens{color="red"}') == ["ntf_tokens has no label color"]
    assert wrong('ntf_tokens{status=~"NEW|OLD"}') == ["ntf_tokens has no status OLD"]
    assert wrong("sum by (job, kind) (ntf_tokens)") == ["nothing here has a label kind"]
    assert wrong('count({__name__=~"ntf_tokens|ntf_gone"})') == ["no metric ntf_gone"]
    assert counters_that_are_not_rated("increase(ntf_clock_steps_total[1h]) > ntf_expired_total") == [
        "ntf_expired_total"
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.alert)
def test_an_alert_is_whole(rule: Rule) -> None:
    assert re.fullmatch(r"Ntf[A-Za-z]+", rule.alert) and re.fullmatch(r"\d+[sm]", rule.for_)
    assert rule.labels.keys() == {"severity"} and rule.labels["severity"] in {"critical", "warning"}
    assert rule.annotations.keys() == {"summary", "description", "runbook_url"}
    of_documents = "{{ $externalLabels.documents }}"
    assert rule.annotations["runbook_url"] == f"{of_documents}docs/how-to/alerts.md#{rule.alert.lower()}"
    assert wrong(rule.expr) == counters_that_are_not_rated(rule.expr) == []
    labels = {label for s in selectors(rule.expr) for label in KNOWN.get(s.metric, {})} | TARGET
    for text in rule.annotations.values():
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.alert)
def test_no_stranger_sets_it_off(rule: Rule) -> None:
    """By what it looks at; alerts.test.yaml has what strangers do, and that nothing fires."""
    for metric, matchers in selectors(rule.expr):
        if metric in FROM_PROMETHEUS:
            continue
        needed = OURS[metric.removesuffix("_bucket")]
        chosen = {label: set(value.split("|")) for label, operator, value in matchers if operator in {"=", "=~"}}
        for label, values in needed.items():
            assert label in chosen and chosen[label] <= values, (metric, label)
    if any(s.metric.endswith("_other") for s in selectors(rule.expr)):
        assert rule.alert == "NtfNoSmpServer"


def test_each_has_its_section_which_says_what_to_do_and_what_of_strangers() -> None:
    sections = dict(re.findall(r"^## (Ntf\w+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    assert [*sections] == [rule.alert for rule in RULES]
    for rule in RULES:
        text = sections[rule.alert]
        assert text.lstrip().startswith(f"*{rule.labels['severity']}.* ")
        if rule.alert != "NtfCertificateEndsSoon":  # as the one before
            assert "\n- " in text and re.search(r"\bStrangers\b", text)


def test_each_is_seen_to_fire_and_to_be_silent() -> None:
    """By promtool, below."""
    fired = set()
    for test in read("alerts.test.yaml")["tests"]:
        for asked in test["promql_expr_test"]:
            for sample in asked["exp_samples"]:
                fired |= set(re.findall(r'alertname="(\w+)"', sample["labels"]))
        assert any(not asked["exp_samples"] for asked in test["promql_expr_test"]) or "Certificates" in test["name"]
    assert fired == {rule.alert for rule in RULES}


def test_series_of_the_tests_are_real_ones() -> None:
    for test in read("alerts.test.yaml")["tests"]:
        assert [found for given in test["input_series"] for found in wrong(given["series"])] == [], test["name"]


def test_prometheus_asks_relays_of_one_job() -> None:
    config = read("prometheus.yaml")
    [job] = config["scrape_configs"]
    assert job["job_name"] == "ntf-relay" and config["rule_files"] == ["alerts.yaml"]
    assert config["global"]["external_labels"] == {"documents": ""}
    jobs = {v for rule in RULES for s in selectors(rule.expr) for label, _, v in s.matchers if label == "job"}
    assert jobs == {"ntf-relay"}


@pytest.mark.long
@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "alerts.yaml"), ("check", "config", "prometheus.yaml"), ("test", "rules", "alerts.test.yaml")],
    ids=" ".join,
)
def test_promtool_says_so_too(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
