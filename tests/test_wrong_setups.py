"""What is told of set-ups that are wrong: by the commands as they are run, with real files, ports and stores."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from wrong_setups import NOBODY, PAGE, WRONG_SETUPS, Place, WrongSetup, page

from ntf_server.cli.service_user import UNIT


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


_BY_A_UNIT = """
import sys
from ntf_server.cli import check, main, service_user
find = service_user.service_user
check.service_user = lambda name, directory: find(name, directory, [sys.argv[1]])
main.main(["check", "--path", sys.argv[2]])
"""


@pytest.mark.parametrize("granted", [True, False])
def test_a_low_port_is_the_unit_s_to_give(place: Place, granted: bool) -> None:
    """Root is told what that user would be; nobody else can give away a port."""
    text = f"[Service]\nUser={NOBODY}\nExecStart=/opt/ntf-relay/bin/ntf-server start --path {place.folder}\n"
    text += "AmbientCapabilities=CAP_NET_BIND_SERVICE\n" if granted else ""
    (place.folder.parent / UNIT).write_text(text)
    place.give_away()
    place.set(TRANSPORT__PORT="81")
    command = [sys.executable, "-c", _BY_A_UNIT, str(place.folder.parent), str(place.folder)]
    done = subprocess.run(command, env=os.environ | place.environ, capture_output=True, text=True, check=False)
    if place.is_for_nobody:
        assert f"user        {NOBODY} (by User= of {place.folder.parent / UNIT})" in done.stdout
    if granted and place.is_for_nobody:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 2
        assert "the system keeps this port for the privileged" in done.stderr


def test_enough_of_them() -> None:
    assert len(WRONG_SETUPS) >= 40
    assert len({row.what for row in WRONG_SETUPS}) == len(WRONG_SETUPS)


def test_the_page_lists_them() -> None:
    assert PAGE.read_text() == page(), "the page is out of date: run scripts/wrong-set-ups"
