"""`ntf-server doctor`, as operators run it. What it says of what is not well: tests/test_wrong_places.py."""

import asyncio
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import in_process, one_line, run

from ntf_server.cli.service_user import UNIT

Start = Callable[..., Any]
ME = pwd.getpwuid(os.geteuid()).pw_name
NOBODY = "nobody"
_BY_A_UNIT = """
import sys
from ntf_server.cli import doctor, main, service_user
find, unit = service_user.service_user, service_user.find_unit
doctor.service_user = lambda name, directory: find(name, directory, [sys.argv[1]])
doctor.find_unit = lambda: unit([sys.argv[1]])
main.main(["doctor", "--path", sys.argv[2]])
"""


async def test_beside_a_server_that_runs(made: Path, start: Start) -> None:
    process, _ = await start()
    done = await asyncio.to_thread(run, "doctor", "--path", made, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["exit_code"] == 0
    found = {finding["name"]: finding for finding in told["findings"]}
    assert found["server"] == {
        "name": "server",
        "standing": "well",
        "text": f"process {process.pid} is well, by its own words",
        "cure": "",
    }
    assert found["user"]["text"] == f"seen as {ME}"
    assert found["store"]["text"] == f"{made}/ntf-server.db (exists, and opens with the key)"
    assert process.returncode is None


def test_by_the_eyes_of_the_unit_s_user() -> None:
    """Root becomes that user; anybody else is himself. The interpreter of the tests may be out of its reach."""
    with tempfile.TemporaryDirectory(prefix="ntf-relay-") as name:
        Path(name).chmod(0o755)
        directory = Path(name, "relay")
        done = run("init", "--path", directory, "--fqdn", "relay.example.org", "--port", "8443")
        assert done.returncode == 0
        lines = ["[Service]", f"ExecStart=ntf-server start --path {directory}", f"User={NOBODY}", "Type=simple"]
        Path(name, UNIT).write_text("\n".join(lines))
        if os.geteuid() == 0:
            for path in (directory, *directory.iterdir()):
                shutil.chown(path, NOBODY)
        command = [sys.executable, "-c", _BY_A_UNIT, name, str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=name)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert f"{name}/{UNIT}: Type=simple: systemd takes it for started, or reloaded, before it is" in done.stdout
        if os.geteuid() == 0:
            assert f"seen as {NOBODY} (by User= of {name}/{UNIT})" in done.stdout


def test_whom_it_cannot_look_for(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = in_process(capsys, "doctor", "--path", made, "--user", "nobdy")
    assert (code, out) == (2, "")
    assert "nobdy" in one_line(err)
