"""What is told of set-ups that are wrong: by the commands as they are run, with real files, ports and stores."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from wrong_setups import PAGE, WRONG_SETUPS, Place, WrongSetup, page


@pytest.fixture
def place() -> Iterator[Place]:
    """In a folder that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="ntf-relay-") as folder, contextlib.ExitStack() as stack:
        Path(folder).chmod(0o755)
        yield Place(Path(folder) / "relay", stack)


def test_a_place_that_was_not_spoiled(place: Place) -> None:
    done = place.check()
    assert (done.returncode, done.stderr) == (0, "")
    assert "warning" not in done.stdout
    place.give_away()
    done = place.check()
    assert (done.returncode, done.stderr) == (0, "")
    assert f"user        {place.user}" in done.stdout


@pytest.mark.parametrize("row", WRONG_SETUPS, ids=lambda row: row.what)
def test_a_wrong_set_up(place: Place, row: WrongSetup) -> None:
    row.spoil(place)
    words = row.told(place)
    done = place.check()
    assert done.returncode == row.code, done.stderr
    lines = (done.stderr if row.code else done.stdout).splitlines()
    assert [line for line in lines if words in line], done
    assert "Traceback" not in done.stderr
    if row.code:
        assert all(line.startswith("ntf-server: ") for line in lines)
        started = place.start()
        assert started.returncode == row.code, started.stderr
        assert words in started.stderr
        assert "Traceback" not in started.stderr
        assert started.stdout == ""


def test_enough_of_them() -> None:
    assert len(WRONG_SETUPS) >= 40
    assert len({row.what for row in WRONG_SETUPS}) == len(WRONG_SETUPS)


def test_the_page_lists_them() -> None:
    assert PAGE.read_text() == page(), "the page is out of date: run scripts/wrong-set-ups"
