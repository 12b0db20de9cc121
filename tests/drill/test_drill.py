"""The page of the drill, and the drill: each fault and its end are told everywhere within a minute."""

from pathlib import Path

import pytest
import yaml
from test_alerts import PROMETHEUS, RULES

from drill.__main__ import INTERVAL, LIMIT, Seen, run, written
from drill.faults import FAULTS, Fault
from ntf_server.observe.events import Event

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "drill.md"


def table(page: str, fault: Fault) -> list[list[str]]:
    """Its rows on the page."""
    text = page.partition(f"\n## {fault.name}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:2] == "| "][
        2:
    ]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_page_has_what_is_looked_for_and_when_it_was_seen(fault: Fault) -> None:
    rows = table(PAGE.read_text(), fault)
    assert [(where, words) for where, words, _, _ in rows] == [(s.place, f"`{s.words}`") for s in fault.signs]
    for _, _, after, gone in rows:
        for cell in (after, gone):
            assert cell == "–" or 0 <= float(cell.removesuffix(" s")) <= LIMIT, cell  # noqa: RUF001


def test_alerts_and_events_are_those_that_there_are() -> None:
    for fault in FAULTS:
        for sign in fault.signs:
            if sign.place == "alert":
                assert sign.words in {rule.alert for rule in RULES}
            if sign.place == "log":
                assert sign.words.split()[0] in {*Event}
        assert not fault.over or fault.over in {*Event}
    assert yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())["global"]["scrape_interval"] == INTERVAL


def test_what_was_seen_goes_into_the_page() -> None:
    fault = FAULTS[0]
    seen = Seen(fault, dict.fromkeys(fault.signs, 1.25), {fault.signs[0]: None})
    page = PAGE.read_text()
    new = written(page, [seen])
    assert [row[2:] for row in table(new, fault)] == [["1.2 s", "never"], *[["1.2 s", "–"]] * (len(fault.signs) - 1)]  # noqa: RUF001
    assert [table(new, other) for other in FAULTS[1:]] == [table(page, other) for other in FAULTS[1:]]
    assert seen.missed == [f"{fault.name}: status: not over within 60 s: {fault.signs[0].words}"]
    with pytest.raises(ValueError, match="no table of APNs"):
        written("# Nothing", [seen])


@pytest.mark.long
async def test_every_fault_and_its_end_are_told_within_a_minute(tmp_path: Path) -> None:
    seen = await run(FAULTS, tmp_path)
    assert [line for found in seen for line in found.missed] == []
