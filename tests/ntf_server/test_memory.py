"""What is kept after the start is frozen, and what was freed goes back to the system."""

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
