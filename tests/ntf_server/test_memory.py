import re
import subprocess
import sys
from pathlib import Path

from ntf_server import memory

SETTLED = """
import gc, hashlib, ssl, sys
from pathlib import Path

import pycurl
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from ntf_server import app, memory


def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


before = rss()
memory.settle()
after = rss()
key = Ed25519PrivateKey.generate()  # what was given back comes back
key.public_key().verify(key.sign(b"x"), b"x")
ssl.create_default_context()
pycurl.Curl().close()
assert hashlib.sha256(b"").hexdigest().startswith("e3b0c442")
print(before, after, gc.get_freeze_count(), *gc.get_threshold())
"""


def test_what_the_start_needed_is_given_back_and_comes_back_when_it_is_used() -> None:
    run = subprocess.run([sys.executable, "-c", SETTLED], capture_output=True, text=True, check=True)
    before, after, frozen, threshold, *_ = map(int, run.stdout.split())
    assert after < before - 4 * 2**20
    assert frozen > 10_000
    assert threshold == 20_000  # of the others 3.14 makes no use


def test_the_mappings_of_code_are_found() -> None:
    """All that the kernel lists, and nothing else."""
    smaps = Path("/proc/self/smaps").read_text()
    listed = [line for line in smaps.splitlines() if re.match(r"\S+-\S+ r-xp .* [1-9]\d* +/", line)]
    found = list(memory._MAPPING.finditer(smaps))
    assert [m[0].splitlines()[0] for m in found] == listed
    assert any("libc" in line or "musl" in line for line in listed)
    assert all(m[0].count("\nAnonymous:") == 1 for m in found)


def test_only_what_the_file_has_is_given_back() -> None:
    text = "5-6 r-xp 0 fd:00 1 /lib\nRss: 4 kB\nPrivate_Dirty: 4 kB\nAnonymous: %9d kB\nSwap: 0 kB\n"
    assert memory._OF_THE_FILE.search(text % 0)
    assert not memory._OF_THE_FILE.search(text % 4)
    assert not memory._OF_THE_FILE.search(text % 10)
