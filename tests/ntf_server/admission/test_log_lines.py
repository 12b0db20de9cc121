"""Log lines by kind."""

import logging

from ntf_server.admission.budgets import Rate
from ntf_server.admission.log_lines import LogLines


class World:
    """A logger whose lines go through the budget, in virtual time."""

    def __init__(self, name: str) -> None:
        self.now = 0.0
        self.written: list[str] = []
        world = self

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                world.written.append(record.getMessage())

        self._handler = Handler()
        self._handler.addFilter(LogLines(Rate.parse("2 + 0.1/s"), lambda: self.now))
        self.log = logging.Logger(name, logging.DEBUG)
        self.log.addHandler(self._handler)


def test_what_is_said_over_and_over_is_counted() -> None:
    world = World("a")
    for number in range(5):
        world.log.info("server %s is down", number)
        world.log.warning("another line")
    assert world.written == ["server 0 is down", "another line", "server 1 is down", "another line"]
    world.now += 10.0
    world.log.info("server %s is down", "100 %")
    world.log.info("server %s is down", 6)
    assert world.written[4:] == ["server 100 % is down (3 more like this were left out)"]
    world.now += 10.0
    world.log.info("server %s is down", 7)
    assert world.written[5:] == ["server 7 is down (1 more like this were left out)"]


def test_what_is_asked_for_is_all_written() -> None:
    world = World("a")
    for _ in range(50):
        world.log.debug("detail")
    assert len(world.written) == 50


def test_kinds_are_bounded() -> None:
    world = World("a")
    for number in range(5000):
        for _ in range(3):
            world.log.info(f"a text of its own {number}")
    assert len(world.written) == 2 * 5000
    [budget] = world._handler.filters
    assert isinstance(budget, LogLines)
    assert len(budget._left_out) <= 1024
