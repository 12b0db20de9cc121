"""`python -m ntf_client` is the command."""

import subprocess
import sys

import ntf_client
import ntf_server.version


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-W", "error", "-m", "ntf_client"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("usage: ntf-client ")
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    assert version == f"ntf-client {ntf_client.__version__}\n" == f"ntf-client {ntf_server.version.VERSION}\n"
    wrong = subprocess.run([*command, "nothing"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
