"""Rows of what was counted on which day; how engines keep them: `store_suite.statistics`."""

import pytest

from ntf_server.store.statistics import by_day, own_row, packed, shared_row, unpacked

DAY, NEXT = "2027-01-15", "2027-01-16"


def test_a_day_is_the_sum_of_its_rows() -> None:
    rows = {
        own_row(NEXT, "a"): {"one": 1},
        own_row(DAY, "b:2027-01-16"): {"one": 10, "two": 0},
        shared_row(DAY): {"level": 7},
        own_row(DAY, ""): {"one": 5},
    }
    days = by_day(rows)
    assert days == {DAY: {"one": 15, "two": 0, "level": 7}, NEXT: {"one": 1}}
    assert list(days) == [DAY, NEXT]
    assert by_day({}) == {}


def test_counts_are_kept_as_they_are() -> None:
    assert unpacked(packed({"one": 2**60, "none": 0})) == {"one": 2**60, "none": 0}


@pytest.mark.parametrize("kept", [b"", b"{", b"[]", b'{"one": "x"}', b'{"one": 1.5}', b"\xff"])
def test_what_cannot_be_read_says_nothing(kept: bytes) -> None:
    assert unpacked(kept) == {}
