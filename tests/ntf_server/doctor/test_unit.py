"""The unit that is installed, beside ours."""

from pathlib import Path

import pytest

from ntf_server.cli.service_user import UNIT, find_unit
from ntf_server.doctor.unit import EXPECTED, unit
from ntf_server.findings import Finding, Standing

DEPLOYED = Path(__file__).parents[3] / "deploy"


def installed(folder: Path, drop_in: str, port: int = 443) -> list[Finding]:
    (folder / UNIT).write_text((DEPLOYED / UNIT).read_text())
    (folder / f"{UNIT}.d").mkdir()
    (folder / f"{UNIT}.d" / "override.conf").write_text(f"[Service]\n{drop_in}\n")
    return [*unit(find_unit([str(folder)]), port=port, is_of_this=True)]


def test_ours_is_as_ours(tmp_path: Path) -> None:
    [found] = unit(find_unit([str(DEPLOYED)]), port=443, is_of_this=True)
    assert found.standing is Standing.WELL
    [found] = unit(find_unit([str(DEPLOYED)]), port=443, is_of_this=False)
    assert found.standing is Standing.LEFT_OUT
    [found] = unit(find_unit([str(tmp_path)]), port=443, is_of_this=False)
    assert found.standing is Standing.LEFT_OUT and "no ntf-server.service is installed" in found.text


def test_the_values_that_are_proposed_are_good_and_those_of_the_file() -> None:
    found = find_unit([str(DEPLOYED)])
    assert found is not None
    for expected in EXPECTED:
        assert expected.good(expected.value)
        assert found[1][expected.key] == expected.value


@pytest.mark.parametrize(
    ("drop_in", "words"),
    [
        ("Type=simple", "Type=simple: systemd takes it for started, or reloaded, before it is"),
        ("Restart=no", "Restart=no: it stays down after whatever ends it"),
        ("RestartPreventExitStatus=", "RestartPreventExitStatus=(not set): it is started again and again"),
        ("TimeoutStopSec=5s", "TimeoutStopSec=5s: it is killed before it has handed over"),
        ("TimeoutStopSec=500ms", "TimeoutStopSec=500ms: it is killed"),
        ("User=root", "User=root: it runs as root"),
        ("NoNewPrivileges=no", "NoNewPrivileges=no: what breaks into it may gain rights"),
        ("ProtectSystem=full", "ProtectSystem=full: what breaks into it may write to the system"),
        ("WatchdogSec=0", "WatchdogSec=0: one that stands still is not started again"),
        ("WatchdogSec=", "WatchdogSec=(not set): one that stands still"),
        ("UMask=0022", "UMask=0022: files that it makes may be read by others"),
    ],
)
def test_what_an_override_spoils(tmp_path: Path, drop_in: str, words: str) -> None:
    [found] = installed(tmp_path, drop_in)
    assert found.standing is Standing.WARNING and words in found.text
    assert found.cure.endswith("then `systemctl daemon-reload`")


def test_values_that_do_as_well(tmp_path: Path) -> None:
    [found] = installed(tmp_path, "Type=notify-reload\nRestart=always\nTimeoutStopSec=1min 30s\nUMask=0177\nUser=relay")
    assert found.standing is Standing.WELL


def test_a_low_port_needs_a_right(tmp_path: Path) -> None:
    [found] = installed(tmp_path, "AmbientCapabilities=")
    assert found.standing is Standing.WRONG and "port 443 is kept for the privileged" in found.text
