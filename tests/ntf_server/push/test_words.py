import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntf_server.push.words import clock_words, is_code, one_line


@pytest.mark.parametrize("code", ["BadDeviceToken", "QUOTA_EXCEEDED", "x" * 63])
def test_names_of_errors(code: str) -> None:
    assert is_code(code)


@pytest.mark.parametrize("code", ["", "x" * 64, "a b", "a\nb", "ü", "a/b", None, 7, ["a"]])
def test_what_is_no_name(code: object) -> None:
    assert not is_code(code)


@given(st.text(max_size=500))
def test_a_text_becomes_one_short_line(text: str) -> None:
    line = one_line(text, 50)
    assert len(line) <= 50
    assert line.isascii()
    assert line == "" or line.isprintable()


def test_other_than_a_text_becomes_nothing() -> None:
    assert one_line(["a"]) == ""


def test_what_is_said_of_the_clock() -> None:
    assert clock_words(61, "X") == "this machine's clock is 61 s behind X's"
    assert clock_words(-61, "X") == "this machine's clock is 61 s ahead of X's"
    assert clock_words(60, "X") == "this machine's clock agrees with X's"
    assert clock_words(None, "X") == "is this machine's clock right?"
