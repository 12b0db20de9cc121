"""What became of the last pushes, of one device."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
from claims import CHECK, MESSAGES, NOW, Clock, claim

from ntf_server.observe.events import FIELDS, Event
from ntf_server.push import trail as module
from ntf_server.push.trail import Trail
from ntf_server.store.records import Ended, Outcome
from smp_bridge.ntf import DeviceToken, Provider

AP = Provider.APNS
SECRET = b"secret device token"


def fingerprint(device: DeviceToken) -> str:
    return {b"one": "0" * 12, b"two": "1" * 12, SECRET: "2" * 12}[device.token]


def origin(device: DeviceToken) -> str:
    return "https://push.example" if device.provider is Provider.WEB_PUSH else ""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def trail(clock: Clock) -> Trail:
    return Trail(fingerprint, origin, clock)


def ids(found: Sequence[dict[str, Any]]) -> list[str]:
    return [push["push"][:2] for push in found]


def test_each_try_of_a_device_is_told(trail: Trail, clock: Clock, logged: list[logging.LogRecord]) -> None:
    clock.now = NOW + 1.5
    trail.add(Outcome(claim(AP, b"one", MESSAGES, attempts=2), Ended.AGAIN, "503 Shutdown", after=4.0))
    clock.now = NOW + 6
    trail.add(Outcome(claim(Provider.WEB_PUSH, b"two", CHECK, 2), Ended.DELIVERED))
    found, count = trail.of("0" * 12)
    assert count == 2
    expected = {
        "push": "01010101-0101-4101-a101-010101010101",
        "token": "0" * 12,
        "provider": "AP",
        "service": "",
        "kind": "messages",
        "age": 1.5,
        "attempt": 3,
        "outcome": "again",
        "reason": "503 Shutdown",
    }
    assert found == [{"at": NOW + 1.5, **expected}]
    told = [r for r in logged if r.name == module.__name__]
    assert [getattr(r, "event") for r in told] == [Event.PUSH_ENDED] * 2  # noqa: B009
    assert getattr(told[0], FIELDS) == expected and set(expected) == set(Event.PUSH_ENDED.fields)
    assert getattr(told[1], FIELDS)["service"] == "https://push.example"


def test_only_what_is_new_is_told_again(trail: Trail) -> None:
    for number in range(1, 5):
        trail.add(Outcome(claim(AP, b"two" if number == 3 else b"one", ref=number), Ended.DELIVERED))
    found, count = trail.of("0" * 12)
    assert (ids(found), count) == (["01", "02", "04"], 4)
    assert trail.of("0" * 12, count) == ([], 4)
    trail.add(Outcome(claim(AP, b"one", ref=5), Ended.DELIVERED))
    assert ids(trail.of("0" * 12, count)[0]) == ["05"]
    assert trail.of("2" * 12) == ([], 5)


def test_memory_is_bounded(trail: Trail, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    trail = Trail(fingerprint, origin, clock)
    for number in range(1, 8):
        trail.add(Outcome(claim(AP, b"one", ref=number), Ended.DELIVERED))
    assert ids(trail.of("0" * 12)[0]) == ["05", "06", "07"]
    assert ids(trail.of("0" * 12, 2)[0]) == ["05", "06", "07"]  # 3 and 4 are forgotten
    assert ids(trail.of("0" * 12, 6)[0]) == ["07"]


def test_device_tokens_are_not_shown(trail: Trail, logged: list[logging.LogRecord]) -> None:
    trail.add(Outcome(claim(AP, SECRET), Ended.DELIVERED))
    trail.of("2" * 12)
    said = [repr(trail._kept), *(str(vars(record)) for record in logged)]
    assert len(said) == 2 and not any(SECRET.decode() in text for text in said)
