"""deploy/grafana: dashboards in Grafana's model, of metrics that there are."""

import json
import re
from itertools import combinations
from typing import Any, Literal

import dashboards
import msgspec
import pytest
from test_alerts import KNOWN, counters_that_are_not_rated, selectors, wrong

FILES = sorted(dashboards.FOLDER.glob("*.json"))
UNITS = {"short", "s", "reqps", "ops", "bytes", "percentunit"}


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Source(Strict):
    type: Literal["prometheus"]
    uid: Literal["${datasource}"]


class Place(Strict):
    x: int
    y: int
    w: int
    h: int


class Query(Strict):
    refId: str
    datasource: Source
    expr: str
    legendFormat: str
    instant: bool
    range: bool
    format: Literal["table", "time_series"]


class Panel(Strict, tag_field="type"):
    id: int
    title: str
    gridPos: Place


class Row(Panel, tag="row"):
    collapsed: Literal[False]
    panels: list[Any]


class Drawn(Panel):
    description: str
    datasource: Source
    targets: list[Query]
    fieldConfig: dict[str, Any]
    options: dict[str, Any]
    transformations: list[dict[str, Any]]


class Curves(Drawn, tag="timeseries"):
    pass


class Number(Drawn, tag="stat"):
    pass


class Table(Drawn, tag="table"):
    pass


class Dashboard(Strict):
    """Of Grafana's model (schema version 39) what is used of it."""

    uid: str
    title: str
    description: str
    tags: list[str]
    schemaVersion: Literal[39]
    version: int
    editable: bool
    graphTooltip: int
    refresh: str
    time: dict[str, str]
    timezone: str
    links: list[dict[str, Any]]
    annotations: dict[str, Any]
    templating: dict[str, list[dict[str, Any]]]
    panels: list[Row | Curves | Number | Table]


def read(name: str) -> Dashboard:
    return msgspec.json.decode((dashboards.FOLDER / name).read_bytes(), type=Dashboard)


NAMES = [file.name for file in FILES]
ALL = {name: read(name) for name in NAMES}


def drawn(name: str) -> list[Drawn]:
    return [panel for panel in ALL[name].panels if isinstance(panel, Drawn)]


def test_the_files_are_what_scripts_dashboards_writes() -> None:
    assert {file.name: file.read_text() for file in FILES} == dashboards.texts()


@pytest.mark.parametrize("name", NAMES)
def test_every_query_is_of_metrics_and_labels_that_there_are(name: str) -> None:
    for panel in drawn(name):
        assert panel.description and panel.title and panel.targets, panel.title
        assert panel.fieldConfig["defaults"]["unit"] in UNITS
        assert len({query.refId for query in panel.targets}) == len(panel.targets)
        for query in panel.targets:
            assert wrong(query.expr) == counters_that_are_not_rated(query.expr) == [], (panel.title, query.expr)
            if "ALERTS" not in query.expr:
                assert selectors(query.expr) and 'job="$job", instance=~"$instance"' in query.expr
            assert_legend_is_of_labels_that_are_left(query)


def assert_legend_is_of_labels_that_are_left(query: Query) -> None:
    legend = set(re.findall(r"\{\{(\w+)\}\}", query.legendFormat))
    there = {label for s in selectors(query.expr) for label in KNOWN.get(s.metric, {})} | {"job", "instance"}
    grouped = re.match(r"(?:histogram_quantile\([\d.]+, )?(?:sum|min|max)(?: by \(([^)]*)\))? \(", query.expr)
    if grouped:
        there = set(re.split(r", *", grouped[1] or ""))
    assert legend <= there, query


@pytest.mark.parametrize("name", NAMES)
def test_panels_fill_the_grid_and_lie_on_no_other(name: str) -> None:
    panels = ALL[name].panels
    assert [panel.id for panel in panels] == list(range(1, len(panels) + 1))
    assert isinstance(panels[0], Row)
    for panel in panels:
        assert panel.gridPos.x >= 0 and panel.gridPos.x + panel.gridPos.w <= 24
    for one, other in combinations((panel.gridPos for panel in panels), 2):
        beside = one.x + one.w <= other.x or other.x + other.w <= one.x
        assert beside or one.y + one.h <= other.y or other.y + other.h <= one.y
    by_line: dict[int, int] = {}
    for panel in panels:
        by_line[panel.gridPos.y] = by_line.get(panel.gridPos.y, 0) + panel.gridPos.w
    assert set(by_line.values()) == {24}


def test_they_are_one_family() -> None:
    assert {dashboard.uid for dashboard in ALL.values()} == {
        f"ntf-relay-{name.removesuffix('.json')}" for name in NAMES
    }
    for dashboard in ALL.values():
        assert dashboard.tags == ["ntf-relay"] and dashboard.links[0]["tags"] == dashboard.tags
        assert [variable["name"] for variable in dashboard.templating["list"]] == ["datasource", "job", "instance"]


def test_every_metric_is_on_one_of_them() -> None:
    """But for some that only say the same in another way."""
    shown = {
        s.metric for name in NAMES for panel in drawn(name) for query in panel.targets for s in selectors(query.expr)
    }
    same = {metric for metric in KNOWN if metric.endswith(("_sum", "_count", "_other_servers"))}
    assert KNOWN.keys() - shown - same == {"ntf_provider_probed"}


def test_json_is_for_people_to_compare() -> None:
    for file in FILES:
        assert json.dumps(json.loads(file.read_text()), indent=2, ensure_ascii=False) + "\n" == file.read_text()
