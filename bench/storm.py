"""What goes on during a reconnect storm: commands of a device, and notifications that become pushes."""

import asyncio
import contextlib
import itertools
import random
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from control import Child
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from percentiles import percentile

from ntf_client import NtfClient

COMMANDS: Final = 200  # TCHKs a second
NOTIFIED: Final = 20  # queues that may be notified, each time
NOTIFY_INTERVAL: Final = 0.1
_POLL: Final = 0.2


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of commands, in seconds from the moment that each was due; those that failed have none."""

    p50: float
    p99: float
    longest: float
    failed: int


class _Background(ABC):
    """A task that runs as long as the `async with` block."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task  # raises what it failed with

    @abstractmethod
    async def _run(self) -> None: ...


class Probe(_Background):
    """TCHKs at a steady rate, whether the earlier ones were answered or not; the clients take turns."""

    def __init__(self, clients: Sequence[NtfClient], token_id: bytes, key: Ed25519PrivateKey) -> None:
        super().__init__()
        self._clients = itertools.cycle(clients)
        self._token_id = token_id
        self._key = key
        self._seconds: list[float] = []
        self._failed = 0
        self._under_way: set[asyncio.Task[None]] = set()

    async def take(self) -> Latencies:
        """Of the commands sent since the last `take`."""
        if self._under_way:
            await asyncio.wait(self._under_way.copy())
        seconds, failed = sorted(self._seconds), self._failed
        self._seconds, self._failed = [], 0
        return Latencies(percentile(seconds, 50), percentile(seconds, 99), percentile(seconds, 100), failed)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            task = asyncio.create_task(self._check(due))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            due += 1 / COMMANDS
            await asyncio.sleep(due - loop.time())

    async def _check(self, due: float) -> None:
        try:
            await next(self._clients).check(self._token_id, self._key)
        except Exception:
            self._failed += 1
        else:
            self._seconds.append(asyncio.get_running_loop().time() - due)


class Pushes(_Background):
    """Notifies random queues as far as they are subscribed again, each once; `sent`: how many that were."""

    def __init__(self, load: Child, database: Path, queues: int) -> None:
        super().__init__()
        self._load = load
        self._database = database
        self._queues = queues
        self._notified: set[int] = set()

    @property
    def sent(self) -> int:
        """NMSGs so far."""
        return len(self._notified)

    async def _run(self) -> None:
        while True:
            chosen = {random.randrange(self._queues) for _ in range(NOTIFIED)} - self._notified
            self._notified.update(await self._load.call("notify", queues=list(chosen)))
            await asyncio.sleep(NOTIFY_INTERVAL)

    async def delivered(self, timeout: float) -> int:
        """How many queues have a notification that a provider took; waits until all have."""
        deadline = time.monotonic() + timeout
        with contextlib.closing(sqlite3.connect(f"{self._database.as_uri()}?mode=ro", uri=True)) as c:
            while True:
                [count] = c.execute("SELECT count(*) FROM notifications WHERE sent = 1").fetchone()
                if count >= self.sent or time.monotonic() > deadline:
                    return int(count)
                await asyncio.sleep(_POLL)
