"""That a store fails is told once, then counted, and its end is told."""

import logging

from ntf_server.observe.events import FIELD, FIELDS, Event
from ntf_server.store.contract import StoreConflictError, StoreFullError, StoreUnavailableError
from ntf_server.store.trouble import Trouble


class Story:
    """What a trouble tells, second by second."""

    def __init__(self, logged: list[logging.LogRecord]) -> None:
        self.now = 100.0
        self.logged = logged
        self.trouble = Trouble("ntf_server.store", lambda: self.now)

    @property
    def told(self) -> list[tuple[Event, dict[str, object]]]:
        found = [(getattr(r, FIELD), getattr(r, FIELDS)) for r in self.logged]
        self.logged.clear()
        return found

    def fail(self, seconds: float, error: Exception | None = None) -> None:
        self.now += seconds
        self.trouble.failed(error or StoreFullError("disk full"))

    def work(self, seconds: float) -> None:
        self.now += seconds
        self.trouble.worked()


def test_it_is_told_once_a_minute_and_so_is_its_end(logged: list[logging.LogRecord]) -> None:
    story = Story(logged)
    story.work(1)
    assert story.told == []
    for _ in range(60):
        story.fail(1)
    assert story.told == [(Event.STORE_TROUBLE, {"reason": "disk full"})]
    story.fail(1)
    assert story.told == [(Event.STORE_TROUBLE, {"reason": "disk full"})]
    story.work(5)
    assert story.told == [(Event.STORE_WELL, {"seconds": 60, "failures": 61})]
    story.work(5)
    assert story.told == []
    story.fail(0)
    assert story.told == [(Event.STORE_TROUBLE, {"reason": "disk full"})]


def test_what_works_between_failures_is_not_its_end(logged: list[logging.LogRecord]) -> None:
    """Reads go on while the disk is full, others while a primary of a cluster is away."""
    story = Story(logged)
    for _ in range(20):
        story.fail(2)
        story.work(2)
    assert [event for event, _ in story.told] == [Event.STORE_TROUBLE, Event.STORE_TROUBLE]
    story.work(3)
    assert story.told == [(Event.STORE_WELL, {"seconds": 76, "failures": 20})]


def test_only_what_passes_is_the_stores_trouble(logged: list[logging.LogRecord]) -> None:
    story = Story(logged)
    story.fail(1, StoreConflictError("a fault of its caller"))
    assert story.told == []
    story.fail(1, StoreUnavailableError("away"))
    assert story.told == [(Event.STORE_TROUBLE, {"reason": "away"})]
