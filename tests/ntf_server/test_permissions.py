"""What a user may do with files, and what to do about it. Root may do everything: these run as another user."""

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ntf_server.permissions import exposed, give_as_folder, may, unreadable, unwritable, user_name

NOBODY = 65534
# The interpreter may be where that user cannot read: all is imported before.
SCRIPT = f"""
import json, os, sys
from pathlib import Path
from ntf_server import permissions
function, path = sys.argv[1], Path(sys.argv[2])
if os.geteuid() == 0:
    os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
if function == "unreadable":
    error = PermissionError(13, "Permission denied")
    print(json.dumps([permissions.user_name(), permissions.unreadable(path, error, "restore it")]))
else:
    print(json.dumps([permissions.user_name(), permissions.unwritable(path, "[store] url")]))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="ntf-relay-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


Ask = Callable[..., Any]


@pytest.fixture
def ask() -> Ask:
    """(user, answer) of a function, by a user that is not root."""

    def asked(function: str, path: Path) -> Any:
        command = [sys.executable, "-c", SCRIPT, function, str(path)]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return asked


def test_a_file_that_may_not_be_read(folder: Path, ask: Ask) -> None:
    file = folder / "key"
    file.touch(mode=0)
    user, line = ask("unreadable", file)
    assert line.startswith(f"{file}: Permission denied; let user {user} read it: `chgrp ")
    assert line.endswith(f" {file} && chmod g+r {file}`")


def test_a_folder_that_may_not_be_entered(folder: Path, ask: Ask) -> None:
    inner = folder / "keys"
    inner.mkdir(mode=0)
    user, line = ask("unreadable", inner / "more" / "key")
    assert line.startswith(f"{inner}/more/key: Permission denied; let user {user} enter {inner}: `chgrp ")
    assert line.endswith(f" {inner} && chmod g+x {inner}`")
    inner.chmod(0o755)


def test_a_folder_that_may_not_be_written_to(folder: Path, ask: Ask) -> None:
    folder.chmod(0o555)
    user, line = ask("unwritable", folder)
    cure = f"set [store] url to a folder of its own, or give it this one: `chown {user} {folder}`"
    assert line == f"{folder}: user {user} may not write there; {cure}"
    folder.chmod(0o777)
    assert ask("unwritable", folder)[1] is None


def test_all_other_errors_have_the_cure_that_is_given() -> None:
    error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    assert unreadable(Path("/a"), error, "restore it") == "/a: No such file or directory; restore it"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert not may(missing, os.R_OK)
    cure = f"create it: `install -d -m 700 -o {user_name()} {missing}`"
    assert unwritable(missing, "[store] url") == f"{missing}: no such folder; {cure}"
    assert unwritable(tmp_path, "[store] url") is None
    missing.touch()
    assert unwritable(missing, "[store] url") == f"{missing}: is no folder; set [store] url to a path in one"


@pytest.mark.parametrize(
    ("mode", "what"),
    [(0o600, None), (0o640, None), (0o660, None), (0o601, None), (0o644, "read"), (0o604, "read"), (0o646, "write")],
)
def test_secrets_that_everybody_has(tmp_path: Path, mode: int, what: str | None) -> None:
    file = tmp_path / "key"
    file.touch()
    file.chmod(mode)
    line = exposed(file)
    if what is None:
        assert line is None
    else:
        assert line == f"{file}: everybody may {what} it (mode {mode:04o}), and it holds a secret: `chmod o= {file}`"


def test_what_is_not_there_is_no_secret(tmp_path: Path) -> None:
    assert exposed(tmp_path / "missing") is None


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_123)
    assert user_name() == "4000000123"


def test_what_root_makes_is_given_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "var"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
    file, absent = folder / "ntf-server.db", folder / "ntf-server.db-wal"
    file.touch()
    give_as_folder(file, absent)
    owner = folder.stat()
    assert (file.stat().st_uid, file.stat().st_gid) == (owner.st_uid, owner.st_gid)
    assert not absent.exists()
