"""When something was: one form everywhere."""

import time
from collections.abc import Iterator

import pytest

from ntf_server.observe.moments import day_of, moment


@pytest.fixture(params=[("UTC", "+00:00", 0), ("Asia/Kathmandu", "+05:45", 20700)])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    name, offset, seconds = request.param
    with monkeypatch.context() as m:
        m.setenv("TZ", name)
        time.tzset()
        yield offset, seconds
    time.tzset()


def test_in_the_machine_s_time_zone_with_its_offset(zone: tuple[str, int]) -> None:
    offset, seconds = zone
    local = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(1_800_000_000 + seconds))
    assert moment(1_800_000_000.9) == f"{local}{offset}"
    assert moment(1_800_000_000.25, "milliseconds") == f"{local}.250{offset}"


@pytest.mark.usefixtures("zone")
def test_days_are_those_of_utc() -> None:
    midnight = 1_800_057_600.0
    assert [day_of(midnight + seconds) for seconds in (-0.001, 0)] == ["2027-01-15", "2027-01-16"]
