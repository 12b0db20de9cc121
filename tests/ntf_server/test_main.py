"""`python -m ntf_server` is the command."""

import subprocess
import sys

from ntf_server.version import VERSION


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-W", "error", "-m", "ntf_server"]
    shown = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"ntf-server {VERSION}\n"
    wrong = subprocess.run([*command, "nothing"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
