"""Certificates that end: what is told, and when again."""

import logging

import pytest

from ntf_server.observe.events import FIELD, FIELDS
from ntf_server.observe.expiry import AGAIN, Expiry
from ntf_server.observe.moments import moment

DAY = 86400.0


class World:
    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        log.set_level(logging.INFO)
        self._log = log
        self.now = 1_800_000_000.0
        self.ends = {"online": self.now + 400 * DAY, "apns": self.now + 400 * DAY}
        self.expiry = Expiry(lambda: self.ends, lambda: self.now)

    def look(self) -> list[str]:
        """Events that a look tells of."""
        self._log.clear()
        self.expiry.look()
        return [f"{getattr(r, FIELD)} {getattr(r, FIELDS)['certificate']}" for r in self._log.records]


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> World:
    return World(caplog)


def test_one_that_is_good_for_long_is_not_told_of(world: World) -> None:
    assert world.look() == []


def test_one_that_ends_is_told_of_once_a_day(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.ends["apns"] = world.now + 20 * DAY
    assert world.look() == ["certificate.ending apns"]
    [record] = caplog.records
    assert getattr(record, FIELDS)["ends"] == moment(world.ends["apns"])
    assert record.getMessage().startswith("the client certificate for APNs ends on 2027-02-04, in 20 days: renew it")
    world.now += AGAIN - 1
    assert world.look() == []
    world.now += 1
    assert world.look() == ["certificate.ending apns"]
    world.now -= 3 * DAY  # somebody set the clock
    assert world.look() == ["certificate.ending apns"]


def test_its_end_is_told_at_once(world: World) -> None:
    world.ends["online"] = world.now + 1
    assert world.look() == ["certificate.ending online"]
    world.now += 1
    assert world.look() == ["certificate.ended online"]
    assert world.look() == []


def test_that_it_was_renewed_is_told_once(world: World) -> None:
    for left in (DAY, -DAY):
        world.ends["apns"] = world.now + left
        world.look()
        world.ends["apns"] = world.now + 365 * DAY
        assert world.look() == ["certificate.well apns"]
        assert world.look() == []
