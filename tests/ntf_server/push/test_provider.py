import time
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ntf_server.push.http import HttpResponse
from ntf_server.push.provider import Accepted, NullProvider, Result, retry_after
from ntf_server.store.base import Notification, Push, PushKind, StoredNotification
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, Provider

SERVER = ServerAddress("smp", ("smp.example.org",), "", bytes(32))


@pytest.mark.parametrize("kind", PushKind)
def test_null_answers_as_if_delivered(kind: PushKind) -> None:
    held = (StoredNotification(1, 1, False, SERVER, Notification(b"q", 1, b"n", b"m")),) * (kind is PushKind.MESSAGES)
    device = DeviceToken(Provider.APNS_NULL, b"")
    pushes = [Push(ref, 0, device, b"", kind, 1, notifications=held) for ref in range(3)]
    results: list[tuple[Push, Result]] = []
    NullProvider().send(pushes, lambda push, result: results.append((push, result)))
    assert results == [(push, Accepted(held)) for push in pushes]


NOW = 1_792_567_680  # Wed, 21 Oct 2026 07:28:00 GMT


def asked(value: str) -> float | None:
    return retry_after(HttpResponse(503, {"retry-after": value}, b""), NOW)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's clock is not set to UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("9999999", 9999999.0),
        ("Wed, 21 Oct 2026 07:30:00 GMT", 120.0),
        ("Wednesday, 21-Oct-26 07:30:00 GMT", 120.0),
        ("Wed Oct 21 07:30:00 2026", 120.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2026 07:27:59 GMT", 0.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
    ],
)
def test_a_retry_after_of_any_form(value: str, seconds: float) -> None:
    assert asked(value) == seconds


@pytest.mark.parametrize(
    "value",
    ["", " ", "soon", "-1", "1.5", "²", "9" * 8, "9" * 400, "nan", "inf", "Wed, 99 Oct 2026 07:30:00 GMT", "0, 0"],
)
def test_a_retry_after_that_says_nothing(value: str) -> None:
    assert asked(value) is None


def test_no_retry_after() -> None:
    assert retry_after(HttpResponse(503, {}, b""), NOW) is None


@given(st.text() | st.text("MonTueWdSuJaFb GMT:,-+0123456789", max_size=40))
@example("Wed, 21 Oct 2026 07:28:00 +9999999")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
def test_no_retry_after_is_an_error_or_negative(value: str) -> None:
    seconds = asked(value)
    assert seconds is None or seconds >= 0
