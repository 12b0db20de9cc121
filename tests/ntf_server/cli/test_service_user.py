"""Whom a command of root's sees with the eyes of. What `check` says of that user: tests/test_wrong_setups.py."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from ntf_server.cli.errors import UsageError
from ntf_server.cli.service_user import UNIT, ServiceUser, find_unit, is_of, service_user

NOBODY = pwd.getpwnam("nobody")
DEPLOYED = Path(__file__).parents[3] / "deploy" / UNIT


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at depends on who asks, and nothing is changed."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def unit(folder: Path, text: str, drop_in: str = "") -> list[str]:
    folder.mkdir(parents=True)
    (folder / UNIT).write_text(text)
    if drop_in:
        (folder / f"{UNIT}.d").mkdir()
        (folder / f"{UNIT}.d" / "override.conf").write_text(drop_in)
    return [str(folder)]


@pytest.mark.usefixtures("root")
def test_by_name(tmp_path: Path) -> None:
    assert service_user("nobody", tmp_path, []) == ServiceUser("nobody", NOBODY.pw_uid, NOBODY.pw_gid, "by --user")
    assert service_user("root", tmp_path, []) is None
    with pytest.raises(UsageError, match=r"^user nobdy \(by --user\): there is no such user; create it: `useradd"):
        service_user("nobdy", tmp_path, [])


@pytest.mark.usefixtures("root")
def test_by_the_unit(tmp_path: Path) -> None:
    config = tmp_path / "config"
    text = f"[Service]\nExecStart=/opt/ntf-relay/bin/ntf-server start --path {config}\nUser=nobody\n"
    folders = unit(tmp_path / "system", text)
    found = service_user(None, config, folders)
    assert found is not None
    assert (found.name, found.why) == ("nobody", f"by User= of {tmp_path}/system/{UNIT}")
    assert not found.low_ports
    assert service_user(None, tmp_path / "another", folders) is None  # which the unit says nothing of


@pytest.mark.usefixtures("root")
def test_what_has_more_than_one_line_is_a_list_until_it_is_emptied(tmp_path: Path) -> None:
    config = tmp_path / "config"
    text = f"[Service]\nUser=ntf\nEnvironment=NTF_SERVER_CFG_PATH={config}\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n"
    more = "[Service]\nEnvironment=NTF_SERVER__STORE__MASTER_KEY_FILE=%d/master.key\nAmbientCapabilities=\n"
    found = find_unit(unit(tmp_path / "system", text, more))
    assert found is not None and is_of(found[1], config)
    assert (found[1]["User"], found[1]["AmbientCapabilities"]) == ("ntf", "")


@pytest.mark.usefixtures("root")
def test_a_drop_in_wins(tmp_path: Path) -> None:
    config = tmp_path / "config"
    folders = unit(
        tmp_path / "system",
        "[Service]\nUser=ntf\n",
        f"[Service]\nUser=nobody\nEnvironment=NTF_SERVER_CFG_PATH={config}\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n",
    )
    found = service_user(None, config, folders)
    assert found is not None
    assert (found.name, found.low_ports) == ("nobody", True)


@pytest.mark.usefixtures("root")
def test_the_unit_that_we_have(tmp_path: Path) -> None:
    folders = unit(tmp_path / "system", DEPLOYED.read_text().replace("User=ntf", "User=nobody"))
    found = service_user(None, Path("/etc/opt/simplex-notifications"), folders)
    assert found is not None
    assert (found.name, found.low_ports) == ("nobody", True)
    folders = unit(tmp_path / "other", DEPLOYED.read_text().replace("User=ntf", "User=nobdy"))
    with pytest.raises(UsageError, match=rf"^user nobdy \(by User= of .*{UNIT}\): there is no such user"):
        service_user(None, Path("/etc/opt/simplex-notifications"), folders)


@pytest.mark.usefixtures("root")
def test_by_the_folder_s_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = tmp_path.stat().st_uid
    found = service_user(None, tmp_path, [])
    assert found is None if owner == 0 else found is not None and found.uid == owner
    assert service_user(None, tmp_path / "missing", []) is None


def test_only_root_can_look_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY.pw_uid)
    assert service_user(None, tmp_path, []) is None
    assert service_user("nobody", tmp_path, []) is None
    with pytest.raises(UsageError, match=r"^--user root: only root can look for another user"):
        service_user("root", tmp_path, [])


def test_whoever_it_becomes_it_stays() -> None:
    """With that user's groups; root becomes nobody, and anybody else stays who they are."""
    script = """
import os, pwd, sys
from ntf_server.cli.service_user import ServiceUser
user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
if user:
    ServiceUser("nobody", user.pw_uid, user.pw_gid, "").become()
print(os.getresuid(), os.getresgid(), 0 in os.getgroups())
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    uid, gid = (NOBODY.pw_uid, NOBODY.pw_gid) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    assert out == f"{(uid,) * 3} {(gid,) * 3} False\n"
