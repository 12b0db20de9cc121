"""Whether a way is open: pauses, probes, what is said."""

import pytest

from ntf_server.observe.condition import WayFacts
from ntf_server.observe.events import Event
from ntf_server.observe.names import WAYS
from ntf_server.push.health import Health, HealthConfig


def health(*, loud: bool = True, **config: float) -> Health:
    return Health(HealthConfig(**config), lambda: 1.0, loud=loud)  # type: ignore[arg-type]


def test_a_new_way_is_open_and_not_proven() -> None:
    h = health()
    assert not h.is_paused(0) and not h.is_probed(0) and not h.proven


def test_pauses_double_from_one_second_until_who_mends_it_sees_that_within_a_minute() -> None:
    h, now, lengths = health(), 0.0, []
    for _ in range(12):
        h.ours("AP", now, "403 InvalidProviderToken")
        lengths.append(h.paused_until - now)
        now = h.paused_until
        assert h.is_probed(now) and not h.is_paused(now)
    assert lengths == [1, 2, 4, 8, 16, 32, 45, 45, 45, 45, 45, 45]


def test_a_way_that_cannot_be_reached_is_tried_every_half_minute() -> None:
    h, now = health(), 0.0
    for _ in range(8):
        h.unreachable(now, "connection refused", None)
        pause, now = h.paused_until - now, h.paused_until
    assert pause == 30


def test_which_way_it_is() -> None:
    h = health()
    assert h.way(0) == "open"
    h.unreachable(0, "timed out", None)
    assert (h.way(0.9), h.way(1)) == ("paused", "probed")
    h.succeeded("AP", 2)
    assert h.way(2) == "open"
    assert {h.way(0), "paused", "probed"} == set(WAYS)


def test_late_answers_do_not_lengthen_a_pause() -> None:
    h = health()
    h.unreachable(0, "timed out", None)
    for _ in range(100):
        h.unreachable(0.5, "timed out", None)
    assert h.paused_until == 1 and h.pauses == 1


@pytest.mark.parametrize(("asked", "waited"), [(0.5, 1), (120, 120), (86400, 3600)])
def test_retry_after_is_honoured_up_to_an_hour(asked: float, waited: float) -> None:
    h = health()
    h.unreachable(0, "503", asked)
    assert h.paused_until == waited


def test_a_success_opens_the_way_and_forgets_the_pauses() -> None:
    h = health()
    h.unreachable(0, "refused", None)
    h.unreachable(1, "refused", None)
    h.succeeded("AP", 3)
    assert not h.is_paused(3) and not h.is_probed(3) and h.proven
    h.unreachable(4, "refused", None)
    assert h.paused_until == 5


def test_an_answer_about_the_push_alone_ends_the_probing() -> None:
    h = health()
    h.unreachable(0, "refused", None)
    h.answered(0.5)
    assert h.is_paused(0.5)  # an answer from before
    h.answered(1)
    assert not h.is_probed(1)


def test_a_fault_of_ours_is_said_at_once_then_every_ten_minutes_and_so_is_its_end() -> None:
    h, said = health(), []
    for now in range(0, 1300, 10):
        notice = h.ours("AP", float(now), "403 InvalidProviderToken")
        if notice:
            said.append((notice.event, notice.seconds))
    assert said == [(Event.PROVIDER_TROUBLE, seconds) for seconds in (0, 600, 1200)]
    end = h.succeeded("AP", 1300)
    assert end is not None and "1300 s" in end.text and "InvalidProviderToken" in end.text
    assert (end.event, end.provider, end.seconds) == (Event.PROVIDER_WELL, "AP", 1300)
    assert end.reason == "403 InvalidProviderToken"
    assert h.succeeded("AP", 1301) is None


def test_failures_that_last_are_said() -> None:
    h = health()
    assert h.failed("AP", 0, "500") is None
    assert h.failed("AP", 24, "500") is None
    notice = h.failed("AP", 25, "500 InternalServerError")
    assert notice is not None and notice.event is Event.PROVIDER_TROUBLE
    assert "25 s" in notice.text and "500 InternalServerError" in notice.text
    assert h.succeeded("AP", 61) is not None


def test_a_failure_between_successes_is_not_said() -> None:
    h = health()
    for now in range(1000):
        assert h.failed("AP", now, "500") is None
        assert h.succeeded("AP", now + 0.5) is None


def test_a_strangers_way_that_never_took_anything_is_not_the_operators_alarm() -> None:
    h = health(loud=False)
    assert all(h.failed("WP", float(now), "400") is None for now in range(0, 5000, 50))
    assert all(h.refuse("WP", float(now), "403") is None for now in range(5000, 9000, 50))
    h.succeeded("WP", 9000)
    for _ in range(9):
        assert h.refuse("WP", 9001, "403") is None
    notice = h.refuse("WP https://push.example", 9002, "403")
    assert notice is not None and "https://push.example" in notice.text and "403" in notice.text


def test_a_way_that_refuses_ten_in_a_row_is_paused_and_one_success_resets_the_count() -> None:
    h = health()
    for _ in range(9):
        h.refuse("WP", 0, "400")
    h.succeeded("WP", 0)
    for _ in range(9):
        h.refuse("WP", 0, "400")
        assert not h.is_paused(0)
    h.refuse("WP", 0, "400")
    assert h.is_paused(0)


def test_the_third_good_token_that_is_called_bad_pauses_a_way_that_took_nothing_yet() -> None:
    h = health()
    assert h.suspect("AP", 0, "TOPIC") is None
    assert h.suspect("AP", 0, "TOPIC") is None
    assert not h.is_paused(0)
    notice = h.suspect("AP", 0, "TOPIC")
    assert notice is not None and notice.event is Event.PROVIDER_TROUBLE and "topic" in notice.text
    assert h.is_paused(0)


def test_what_was_mended_is_tried_at_once_and_nothing_is_proven_any_more() -> None:
    h = health()
    h.succeeded("AP", 0)
    for _ in range(8):
        h.ours("AP", h.paused_until, "403")
    now = h.paused_until - 100
    assert h.is_paused(now)
    h.mended(now)
    assert h.is_probed(now) and not h.proven


# --- what is known of it


def test_how_a_way_is() -> None:
    """Since when, why, whose it is to mend; and when it took something last."""
    h = health()
    assert h.facts("AP", 5) == WayFacts("AP")
    h.succeeded("AP", 10)
    assert h.facts("AP", 15) == WayFacts("AP", accepted_ago=5.0)
    h.unreachable(20, "connection refused", None)
    assert h.facts("AP", 20.5) == WayFacts(
        "AP", troubled_for=0.5, paused_for=0.5, reason="connection refused", accepted_ago=10.5
    )
    assert h.facts("AP", 22) == WayFacts(
        "AP", troubled_for=2.0, is_probed=True, reason="connection refused", accepted_ago=12.0
    )
    h.succeeded("AP", 30)
    assert h.facts("AP", 31) == WayFacts("AP", reason="connection refused", accepted_ago=1.0)


def test_whose_it_is_to_mend() -> None:
    """Ours until something is taken, a token is judged, or the trouble is another by now."""
    h = health(suspicious=1)
    for ours in (lambda: h.ours("AP", 0, "403"), lambda: h.suspect("AP", 0, "BAD")):
        for end in (lambda: h.succeeded("AP", 9), lambda: h.answered(9), lambda: h.unreachable(9, "gone", None)):
            ours()
            assert h.facts("AP", 1).is_ours
            end()
            assert not h.facts("AP", 10).is_ours
            h.succeeded("AP", 10)
            h.mended(10)
    h.failed("AP", 11, "500")
    assert not h.facts("AP", 11).is_ours
