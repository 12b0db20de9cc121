"""What is kept after the start is frozen, and what was freed goes back to the system; nobody else reads any of it."""

import os
import subprocess
import sys

SETTLED = """
import gc
from pathlib import Path

from ntf_server import app, memory


def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])


freed = [bytes(1000) for _ in range(30_000)]
last = bytes(1000)  # the heap does not shrink by itself under what is kept above
del freed
before = anonymous()
memory.settle()
print(before, anonymous(), gc.get_freeze_count(), *gc.get_threshold())
"""


def test_what_the_start_needed_goes_back_and_the_rest_is_frozen() -> None:
    run = subprocess.run([sys.executable, "-c", SETTLED], capture_output=True, text=True, check=True)
    before, after, frozen, threshold, *_ = map(int, run.stdout.split())
    assert after < before - 15_000  # KiB, of 29,000
    assert frozen > 10_000
    assert threshold == 20_000  # of the others 3.14 makes no use


PRIVATE = """
import ctypes, os, resource, signal, sys
from ntf_server import memory
from smp_bridge.identity import Credentials
from smp_bridge.tls import client_context

credentials, _ = Credentials.generate("ED25519", "service")
if "nobody" in sys.argv:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
memory.keep_private()
assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0, "PR_GET_DUMPABLE"
client_context("smp", credentials)  # from a file in memory, which it still may open
os.listdir("/proc/self/fd")
child = os.fork()
if not child:
    os.abort()
_, status = os.waitpid(child, 0)
assert os.WIFSIGNALED(status)
print(resource.getrlimit(resource.RLIMIT_CORE), os.WCOREDUMP(status))
"""


def test_no_core_dump_is_written_and_everything_works() -> None:
    """Also for a user who is not root, who owns nothing of /proc/self then."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("COV")}  # nobody may write what it measures
    for user in ([], ["nobody"]) if os.geteuid() == 0 else ([],):
        argv = [sys.executable, "-c", PRIVATE, *user]
        run = subprocess.run(argv, capture_output=True, text=True, check=False, env=environ)
        assert (run.stdout, run.stderr) == ("(0, 0) False\n", "")
