"""Owners, descriptors, room."""

import os
from pathlib import Path

import pytest

from ntf_server.doctor.machine import clock, descriptors, owners, room
from ntf_server.findings import Standing

NOBODY = 65534


def test_what_somebody_else_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, absent = tmp_path / "server.key", tmp_path / "absent.key"
    key.touch()
    [found] = owners(tmp_path, [key, absent])
    assert (found.standing, found.name) == (Standing.WELL, "owner")
    if os.geteuid() == 0:
        os.chown(key, NOBODY, NOBODY)
        bad = [key]
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 1)
        bad = [tmp_path, key]
    found_bad = [*owners(tmp_path, [key])]
    assert [f.text.partition(": belongs to ")[0] for f in found_bad] == [str(path) for path in bad]
    assert all(f.standing is Standing.WARNING and f.cure.startswith("`chown root ") for f in found_bad)


def test_what_a_group_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "server.key"
    key.touch()
    monkeypatch.setattr(os, "getegid", lambda: 1)
    key.chmod(0o660)
    if os.geteuid() == 0:
        os.chown(key, 0, NOBODY)
    [found] = owners(tmp_path, [key])
    assert found.standing is Standing.WARNING and found.cure == f"`chmod g-w {key}`"


def test_descriptors() -> None:
    assert descriptors(100, None).standing is Standing.WELL
    little = descriptors(10**9, None)
    assert little.standing is Standing.WARNING and "`ulimit -Hn` of this user allows" in little.text
    assert descriptors(20_000, "262144").standing is Standing.WELL
    assert descriptors(20_000, "infinity").standing is Standing.WELL
    little = descriptors(20_000, "1024:4096")
    assert little.standing is Standing.WARNING
    assert "LimitNOFILE=1024:4096 of the unit allows 4096 files" in little.text
    assert little.cure == "set LimitNOFILE=262144 in the unit"


def test_the_clock_is_looked_at_and_left_as_it_is() -> None:
    found = clock()
    assert found.name == "clock" and found.standing is not Standing.WRONG
    assert bool(found.cure) is (found.standing is Standing.WARNING)


def test_room(tmp_path: Path) -> None:
    found = [*room(tmp_path / "ntf-server.db")]
    assert found[0].name == "disk" and f"{tmp_path}: " in found[0].text
    [full, *_] = room(Path("/proc/ntf-server.db"))  # where nothing can be stored
    assert full.standing is Standing.WRONG and "/proc: 0 MiB are free" in full.text
    [absent] = room(tmp_path / "absent" / "ntf-server.db")
    assert absent.standing is Standing.WRONG and "No such file or directory" in absent.text
