"""Bursts of NMSGs, from the SMP servers of `smp_load` to the pushes at the mock of `apns_load`, and what they take."""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from control import Child
from devices import until_accepted

_SETTLE: Final = 0.3
_QUIET: Final = 3.0  # seconds: a relay may hold a device's next push back for what else comes
_POLL: Final = 0.05


@dataclass(frozen=True, slots=True)
class Target:
    """A server under test; device i has the queues i, i + number of devices, ..., its pushes the `:path` `paths[i]`."""

    name: str
    paths: Sequence[str] = field(repr=False)
    relay: Child | None = None  # ours has instruments
    database: Path | None = None
    pid: int | None = None  # of another server, on this machine

    async def reset(self) -> dict[str, Any]:
        """Count from now."""
        if self.relay is not None:
            await self.relay.call("reset")
        return {} if self.pid is None else _process(self.pid)

    async def figures(self, before: dict[str, Any]) -> dict[str, Any]:
        """`cpu` by thread since `reset`, which gave `before`; `rss`; of ours `stalls`. Empty if nothing is known."""
        if self.relay is not None:
            figures: dict[str, Any] = await self.relay.call("figures")
            return figures
        if self.pid is None:
            return {}
        now = _process(self.pid)
        return {"rss": now["rss"], "cpu": {name: s - before["cpu"].get(name, 0.0) for name, s in now["cpu"].items()}}

    def unsent(self) -> int:
        """Notifications that the store holds and that no provider took; -1 if it cannot be looked into."""
        if self.database is None:
            return -1
        with contextlib.closing(sqlite3.connect(f"{self.database.as_uri()}?mode=ro", uri=True)) as c:
            return int(c.execute("SELECT count(*) FROM notifications WHERE sent = 0").fetchone()[0])


def _process(pid: int) -> dict[str, Any]:
    """CPU seconds by thread, and RSS, of any process."""
    tick, cpu = os.sysconf("SC_CLK_TCK"), defaultdict[str, float](float)
    for task in Path(f"/proc/{pid}/task").iterdir():
        head, _, tail = (task / "stat").read_text().rpartition(")")
        fields = tail.split()
        cpu[head.partition("(")[2]] += (int(fields[11]) + int(fields[12])) / tick
    return {"cpu": dict(cpu), "rss": process_rss(pid)}


def process_rss(pid: int) -> int:
    """Bytes of any process."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


@dataclass(slots=True)
class Measured:
    """Sums over the bursts of a mode; `latencies` in seconds from NMSG to request, where they can be told."""

    notified: int = 0
    pushes: int = 0
    refused: int = 0
    received: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    unmatched: int = 0
    cpu: dict[str, float] = field(default_factory=dict)
    stalls: dict[str, float] = field(default_factory=dict)
    rss: int = 0
    mock_cpu: float = 0.0
    generator_cpu: float = 0.0


@dataclass(frozen=True, slots=True)
class Bursts:
    """What makes bursts and sees them arrive. `tick`: milliseconds whose NMSGs share a block, when a rate is asked for.

    `timeout`: seconds that a burst may take.
    """

    load: Child
    mock: Child
    timeout: float = 60.0
    tick: float = 2.0

    async def burst(
        self, target: Target, queues: Sequence[int], out: Measured, *, rate: float = 0.0, latency: float = 0.0
    ) -> None:
        """Notify these queues, once each unless they are repeated; add what was measured to `out`.

        `latency`: of the mock, in seconds: how long nothing may come, before all has come, if pushes are shared.
        Raises RuntimeError if the relay is not connected to the SMP servers, TimeoutError.
        """
        each = max(1, round(rate * self.tick / 1000)) if rate else 0
        prepared = await self.load.call("prepare", queues=list(queues), each=each)
        if prepared != len(queues):
            raise RuntimeError("the server under test is not connected to the SMP server")
        await self.mock.call("reset")
        mock_before, load_before = await self.mock.call("stats"), await self.load.call("stats")
        before = await target.reset()
        await self.load.call("burst", rate=rate)
        coalesced = not rate and len({i % len(target.paths) for i in queues}) < len(queues)
        stats = await (self._quiet(latency) if coalesced else self._accepted(len(queues)))
        stalls = (await target.figures(before)).get("stalls", {})
        written = await self.load.call("written")
        load_after = await self.load.call("stats")
        await asyncio.sleep(_SETTLE)  # outcomes are still being recorded, and cost something
        figures = await target.figures(before)
        arrivals = await self.mock.call("arrivals")
        out.notified += len(queues)
        out.pushes += stats["pushes"]
        out.refused += stats["refused"]
        out.received += stats["received"]
        out.seconds += (stats["last_at"] - written[0]) / 1e9
        out.mock_cpu += stats["cpu"] - mock_before["cpu"]
        out.generator_cpu += load_after["cpu"] - load_before["cpu"]
        for name, seconds in figures.get("cpu", {}).items():
            out.cpu[name] = out.cpu.get(name, 0.0) + seconds
        for name, seconds in stalls.items():
            out.stalls[name] = max(out.stalls.get(name, 0.0), seconds)
        out.rss = figures.get("rss", 0)
        if not coalesced:
            self._match(target, queues, written, arrivals, out)

    def _match(
        self,
        target: Target,
        queues: Sequence[int],
        written: Sequence[int],
        arrivals: dict[str, list[int]],
        out: Measured,
    ) -> None:
        """The n-th NMSG of a device led to its n-th push, if it got as many: else some were retried or coalesced."""
        sent: defaultdict[int, list[int]] = defaultdict(list)
        for queue, at in zip(queues, written, strict=True):
            sent[queue % len(target.paths)].append(at)
        for device, times in sent.items():
            came = arrivals.get(target.paths[device], [])
            if len(came) == len(times):
                out.latencies += [(b - a) / 1e9 for a, b in zip(times, came, strict=True)]
            else:
                out.unmatched += 1

    async def _accepted(self, count: int) -> dict[str, Any]:
        """The mock's figures when it took so many pushes and the generator is done. Raises TimeoutError."""
        stats = await until_accepted(self.mock, count, self.timeout)
        while True:
            if await self.load.call("written") is not None:
                return stats
            await asyncio.sleep(_POLL)

    async def _quiet(self, latency: float) -> dict[str, Any]:
        """The mock's figures when nothing comes any more: how many pushes there are is not known before."""
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            await asyncio.sleep(_POLL)
            stats: dict[str, Any] = await self.mock.call("stats")
            quiet = time.monotonic() - stats["last_at"] / 1e9
            if quiet < _QUIET + 2 * latency or not stats["pushes"]:
                continue
            if await self.load.call("written") is not None:
                return stats
        raise TimeoutError("pushes did not end")
