"""`python -m ntf_client` is the command."""

import subprocess
import sys


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-W", "error", "-m", "ntf_client"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("usage: ntf-client ")
    wrong = subprocess.run([*command, "nothing"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
