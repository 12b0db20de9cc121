"""What is found, as lines and as JSON."""

from ntf_server.findings import exit_code, left_out, warning, well, wrong


def test_each_has_a_line_and_its_cure_another() -> None:
    assert [*well("clock", "is right").lines()] == ["well     clock         is right"]
    assert [*wrong("clock", "is wrong", "set it").lines()] == [
        "wrong    clock         is wrong",
        "                       cure: set it",
    ]
    assert [*left_out("clock", "nobody asked").lines()] == ["left out clock         nobody asked"]


def test_the_same_for_json() -> None:
    fields = {"name": "disk", "standing": "warning", "text": "is nearly full", "cure": "make room"}
    assert warning("disk", "is nearly full", "make room").fields() == fields


def test_only_what_is_wrong_fails() -> None:
    assert exit_code([]) == exit_code([well("a", "b"), warning("a", "b"), left_out("a", "b")]) == 0
    assert exit_code([well("a", "b"), wrong("a", "b", "c")]) == 1
