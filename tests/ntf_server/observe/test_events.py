"""The table of events, and that it is true."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from ntf_server.observe.events import FIELD, FIELDS, Event, EventLog, table

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "reference" / "events.md"


def told(logged: list[logging.LogRecord]) -> list[Any]:
    return [(getattr(r, FIELD), getattr(r, FIELDS), r.levelno, r.getMessage()) for r in logged if hasattr(r, FIELD)]


def test_an_event_has_its_fields(logged: list[logging.LogRecord]) -> None:
    log = EventLog("ntf_server.somewhere")
    log.tell(Event.TOKEN_DEAD, "of %s", "AP", provider="AP", reason="BAD")
    assert told(logged) == [(Event.TOKEN_DEAD, {"provider": "AP", "reason": "BAD"}, logging.INFO, "of AP")]
    with pytest.raises(ValueError, match=r"token\.dead has no field token"):
        log.tell(Event.TOKEN_DEAD, "", token="secret")


def test_what_nobody_listens_to_costs_nothing(logged: list[logging.LogRecord]) -> None:
    logging.getLogger("ntf_server.deaf").setLevel(logging.INFO)
    log = EventLog("ntf_server.deaf")
    assert log.is_told(Event.RELAY_STARTED) and not log.is_told(Event.PUSH_ENDED)
    log.tell(Event.PUSH_ENDED, "", rubbish=1)
    assert told(logged) == []


def test_names_are_words_with_dots() -> None:
    assert all(re.fullmatch(r"[a-z]+(\.[a-z_]+)+", event) for event in Event)


def test_each_is_told_somewhere() -> None:
    sources = [path.read_text() for path in (ROOT / "ntf_server").rglob("*.py") if path.name != "events.py"]
    untold = [event.name for event in Event if not any(f"Event.{event.name}" in text for text in sources)]
    assert untold == []


def test_the_page_has_them_all() -> None:
    """`python -m ntf_server.observe.events` prints the table."""
    assert table() in PAGE.read_text()
