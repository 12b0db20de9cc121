"""Mistakes are collected, and told at once."""

import pytest

from ntf_server.config.mistakes import ConfigError, Mistakes, NotNowError, nearest, shown


def fail(error: ConfigError) -> None:
    raise error


def test_none() -> None:
    mistakes = Mistakes()
    assert mistakes.find(lambda: 7) == 7
    assert not mistakes
    mistakes.end()


def test_all_of_them_in_their_order_and_each_once() -> None:
    mistakes = Mistakes()
    for text in ("a: wrong", "b: wrong", "a: wrong"):
        assert mistakes.find(lambda text=text: fail(ConfigError(text))) is None  # type: ignore[misc]
    mistakes.add(ConfigError("c: wrong", "d: wrong"))
    with pytest.raises(ConfigError) as e:
        mistakes.end()
    assert e.value.mistakes == ("a: wrong", "b: wrong", "c: wrong", "d: wrong")
    assert str(e.value) == "a: wrong; and b: wrong; and c: wrong; and d: wrong"
    assert not isinstance(e.value, NotNowError)


def test_it_may_pass_only_if_all_of_it_may() -> None:
    mistakes = Mistakes()
    mistakes.add(NotNowError("a key service is down"))
    assert isinstance(mistakes.error, NotNowError)
    mistakes.add(ConfigError("a: wrong"))
    assert not isinstance(mistakes.error, NotNowError)


def test_what_would_come_of_a_mistake_is_not_told() -> None:
    mistakes = Mistakes()
    mistakes.add(ConfigError("[apns] keyid: unknown"), "apns")
    assert mistakes.find(lambda: fail(ConfigError("[apns] key_id: missing")), "apns") is None
    assert mistakes.find(lambda: fail(ConfigError("[fcm] host: wrong")), "fcm") is None
    assert mistakes.error.mistakes == ("[apns] keyid: unknown", "[fcm] host: wrong")


@pytest.mark.parametrize(
    ("word", "meant"), [("prot", "port"), ("PORT", "port"), ("hosts", "host"), ("x", None), ("", None)]
)
def test_the_nearest(word: str, meant: str | None) -> None:
    assert nearest(word, ["host", "port", "bind"]) == meant


@pytest.mark.parametrize(
    ("text", "line"), [("port", "port"), ("a\nb", "a\\nb"), ("\udcff", "\\udcff"), ("x" * 50, "x" * 40 + "…")]
)
def test_what_was_written_is_shown_on_one_short_line(text: str, line: str) -> None:
    assert shown(text) == line
