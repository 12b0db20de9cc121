"""The relay in a process of its own, which tells how much memory and time it takes and how long its loop is held up.

`relay_process.py DIR` runs `ntf_server.app.run` with the configuration of a folder. Controlled as `control` says:

    reset      forget the stalls seen so far, and count CPU time from now
    figures    see `Figures.read`
"""

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from array import array
from pathlib import Path
from typing import Any, Final

from control import obey
from percentiles import percentile

from ntf_server import app
from ntf_server.config import files as config

INTERVAL: Final = 0.005
_TICK: Final = os.sysconf("SC_CLK_TCK")


class Stalls:
    """Seconds by which the loop is late, looked at every 5 ms.

    While it is held up every 5 ms that pass count, with what is left of the stall: the percentiles are those of an
    event that comes at any moment, not of the few samples that a long stall lets through.
    """

    def __init__(self) -> None:
        self._late = array("f")

    async def run(self) -> None:
        """Sample until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time() + INTERVAL
        while True:
            await asyncio.sleep(due - loop.time())
            late = max(0.0, loop.time() - due)
            due += INTERVAL
            self._late.append(late)
            while late > INTERVAL:
                late -= INTERVAL
                due += INTERVAL
                self._late.append(late)

    def reset(self) -> None:
        """Forget all."""
        self._late = array("f")

    def read(self) -> dict[str, float]:
        """Seconds."""
        late = sorted(self._late)
        return {"p50": percentile(late, 50), "p99": percentile(late, 99), "max": percentile(late, 100)}


class Figures:
    """What is measured of this process."""

    def __init__(self, stalls: Stalls) -> None:
        self._stalls = stalls
        self._cpu_before: dict[str, float] = {}

    def reset(self) -> None:
        """See the module's docstring."""
        self._stalls.reset()
        self._cpu_before = _cpu()

    def read(self) -> dict[str, Any]:
        """`rss`, `peak`: bytes now and at most since the start; `cpu`: seconds by thread; `stalls`: seconds."""
        cpu = {name: seconds - self._cpu_before.get(name, 0.0) for name, seconds in _cpu().items()}
        return {**_memory(), "cpu": cpu, "stalls": self._stalls.read()}


def _memory() -> dict[str, int]:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[key].split()[0]) * 1024 for name, key in (("rss", "VmRSS"), ("peak", "VmHWM"))}


def _cpu() -> dict[str, float]:
    """User and system seconds of each thread; those that Python does not know of share a name."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    out: dict[str, float] = {}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        name = names.get(int(task.name), "other")
        out[name] = out.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / _TICK
    return out


async def _main(directory: Path) -> None:
    loaded = config.load(directory)
    stalls = Stalls()
    figures = Figures(stalls)
    tasks = [asyncio.create_task(stalls.run())]

    def ready(relay: app.Relay) -> None:
        key_hash = loaded.credentials.key_hash.hex()
        says = {"port": relay.port, "key_hash": key_hash, "listening_at": time.monotonic()}
        controlled = asyncio.create_task(obey({"reset": figures.reset, "figures": figures.read}, says))
        controlled.add_done_callback(lambda _: os.kill(os.getpid(), signal.SIGTERM))
        tasks.append(controlled)

    await app.run(loaded, ready)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(_main(Path(sys.argv[1])))
