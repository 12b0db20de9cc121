"""The last events."""

import logging
from collections.abc import Iterator

import pytest

from ntf_server.observe.events import Event, EventLog
from ntf_server.observe.recent import KEPT, LONGEST, Recent, plain


@pytest.fixture
def recent() -> Iterator[Recent]:
    """Hears what `events` tells."""
    log, handler = logging.getLogger("test_recent"), Recent()
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


events = EventLog("test_recent.module")


def test_what_is_told(recent: Recent) -> None:
    events.tell(Event.SMP_CONNECTED, "connected to %s", "smp.example.org", server="smp.example.org")
    logging.getLogger("test_recent").error("no event")
    events.tell(Event.STORE_TROUBLE, "the store fails", reason="full")
    events.tell(Event.PUSH_ENDED, "one of thousands a second")
    first, second = recent.since()
    assert first[2:] == ("info", "smp.connected", "connected to smp.example.org")
    assert second[2:] == ("error", "store.trouble", "the store fails")
    assert first.at <= second.at
    assert recent.since(first.number) == [second]
    assert recent.since(second.number) == []


def test_what_strangers_bring_about_does_not_push_out_what_is_loud(recent: Recent) -> None:
    events.tell(Event.STORE_TROUBLE, "the store fails", reason="full")
    for n in range(3 * KEPT):
        events.tell(Event.SMP_CONNECTED, "%s", n)
    found = recent.since()
    assert found[0].name == "store.trouble"
    assert [told.text for told in found[1:]] == [str(n) for n in range(2 * KEPT, 3 * KEPT)]


def test_a_message_that_cannot_be_made_is_left_out(recent: Recent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    events.tell(Event.STORE_TROUBLE, "%d", "no number", reason="full")
    assert recent.since() == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("smp.example.org", "smp.example.org"),
        ("a\nb\x1b[31m", "a·b·[31m"),
        ("\u202egro.elpmaxe", "·gro.elpmaxe"),
        ("<script>", "<script>"),  # which the page escapes
        ("x" * (LONGEST + 1), "x" * (LONGEST - 1) + "…"),
        ("x" * LONGEST, "x" * LONGEST),
    ],
)
def test_words_of_strangers(text: str, shown: str) -> None:
    assert plain(text, LONGEST) == shown
