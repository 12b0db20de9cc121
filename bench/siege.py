"""One attack, on the relay or on the sink, and what honest phones and servers notice of it meanwhile."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from attacks import ATTACKS
from attacks.base import ONE
from besieged import EVIL, EVIL_HOST, SILENT, Besieged
from control import Child, child
from devices import Device, new_devices
from from_address import many_addresses
from percentiles import percentile
from phones import FAILED, PATIENCE, Seen, arrive, ask, neighbour, register

from ntf_client.push import Notifications

RATE: Final = 50.0  # NMSGs a second
RECONNECT_LIMIT: Final = 60.0  # seconds that are waited for the servers
OWNER_LIMIT: Final = 100.0  # seconds that are waited for the owner of a device that others register
OWNER: Final = "127.0.0.77"
_POLL: Final = 0.1
_LATE: Final = 15.0  # seconds that are waited for what was not pushed yet
_PREPARING: Final = 120.0
_ALL: Final = 600.0  # seconds of one attack; an attacker may hang himself


@dataclass(frozen=True, slots=True)
class Size:
    """Of a run: seconds of steady load, and the part of the attacks' full numbers."""

    seconds: float
    part: float


@dataclass(slots=True)
class Figures:
    """Seconds, bytes, counts. `push`, `web_push`: p99 from NMSG to request; `new_phone`, `neighbour`: the longest.

    `lost`: NMSGs that led to no push; `descriptors`: more than before, at most; `lines`: of the log, in a minute;
    `cpu`: of the relay under steady load, of one core; `owner`: until the owner of a device that others register too
    was ACTIVE; `pushed`: to that device.
    """

    reconnect: float = math.inf
    push: float = math.inf
    web_push: float = math.inf
    lost: int = 0
    check: float = math.inf
    new_phone: float = math.inf
    refused: int = 0
    neighbour: float = math.inf
    memory: int = 0
    descriptors: int = 0
    lines: float = 0.0
    cpu: float = 0.0
    owner: float = math.nan
    pushed: int = 0
    words: list[str] = field(default_factory=list)
    attack: dict[str, float] = field(default_factory=dict)


class Watch:
    """What the relay takes, looked at again and again: more than before, at most."""

    def __init__(self, relay: Besieged) -> None:
        self._relay = relay
        self._memory = relay.relay.memory().anon
        self._descriptors = relay.descriptors()
        self._lines = relay.log_lines()
        self._started = time.monotonic()
        self.memory = self.descriptors = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(5 * _POLL)

    def look(self) -> None:
        """Now."""
        self.memory = max(self.memory, self._relay.relay.memory().anon - self._memory)
        self.descriptors = max(self.descriptors, self._relay.descriptors() - self._descriptors)

    def lines(self) -> float:
        """Of the log, a minute; in less than a minute, so many as there were."""
        count = self._relay.log_lines() - self._lines
        return count / max(1.0, (time.monotonic() - self._started) / 60)


async def besiege(relay: Besieged, name: str, size: Size, *, sink: bool) -> Figures:
    """One attack. Raises RuntimeError if it fails to attack, ChildError, TimeoutError."""
    async with asyncio.timeout(_ALL):
        return await _besiege(relay, name, size, sink=sink)


async def _besiege(relay: Besieged, name: str, size: Size, *, sink: bool) -> Figures:
    kind, out, seen = ATTACKS[name], Figures(), Seen()
    watch = Watch(relay)
    victim = new_devices(1, "ed25519")[0]
    async with _attacking(relay, name, size, victim.path.rpartition("/")[2], sink=sink) as attacker:
        over = asyncio.Event()
        shared = ONE if kind.addresses == 1 else many_addresses(kind.addresses)(0)
        address, servers = relay.relay.address, relay.world.servers
        endless = [asyncio.create_task(watch.run()), asyncio.create_task(ask(address, relay.owners[0], seen))]
        phones = [
            asyncio.create_task(arrive(address, servers, relay.pushes, seen, over)),
            asyncio.create_task(neighbour(shared, address, relay.spare[0], seen, over)),
        ]
        owner = asyncio.create_task(_own(relay, victim, out)) if kind.has_victim and not sink else None
        try:
            await _pushes(relay, size, out)
            out.reconnect = await _reconnect(relay)
            over.set()
            await asyncio.wait(phones, timeout=PATIENCE)
            if owner is not None:
                await asyncio.wait([owner], timeout=OWNER_LIMIT)
                out.owner = owner.result() if owner.done() else math.inf
                out.pushed = len(relay.pushes.came[victim.path])
        finally:
            for task in (*endless, *phones, *([owner] if owner else [])):
                task.cancel()
        await asyncio.wait([*endless, *phones])
        for task in (*endless, *phones):
            if not task.cancelled():
                task.result()  # they fail only if the bench does
        watch.look()
        out.memory, out.descriptors, out.lines = watch.memory, watch.descriptors, watch.lines()
        out.attack = await attacker.call("figures")
    _tell(seen, out)
    return out


@asynccontextmanager
async def _attacking(relay: Besieged, name: str, size: Size, victim: str, *, sink: bool) -> AsyncIterator[Child]:
    """The attack in place, or as much of it as there is by then, until the block ends."""
    kind, world = ATTACKS[name], relay.world
    plan: dict[str, Any] = {
        "target": str(world.sink_address if sink else relay.relay.address),
        "is_sink": sink,
        "tokens": [(d.token_id.hex(), d.key.private_bytes_raw().hex()) for d in relay.spare[1:]],
        "part": size.part,
        "victim": victim,
        "evil": EVIL,
        "evil_host": EVIL_HOST,
        "silent": SILENT,
        "cert_file": str(world.tls.cert_file),
        "key_file": str(world.tls.key_file),
    }
    async with child("attacker.py", name) as attacker:
        await attacker.call("prepare", **plan)
        await _until(attacker, "prepared", _PREPARING)
        await attacker.call("begin")
        await _until(attacker, "in place", kind.settle, must=False)
        yield attacker
        if (state := await attacker.call("state")).startswith("failed"):
            raise RuntimeError(f"{name} {state}")


async def _until(attacker: Child, wanted: str, seconds: float, *, must: bool = True) -> None:
    deadline = time.monotonic() + seconds
    while (state := await attacker.call("state")) != wanted:
        late = time.monotonic() > deadline
        if state.startswith("failed") or (late and must):
            raise RuntimeError(f"{attacker.name} is {state}, not {wanted}")
        if late:
            return
        await asyncio.sleep(_POLL)


async def _pushes(relay: Besieged, size: Size, out: Figures) -> None:
    """A steady rate of NMSGs, and how long each took to be a request at the mock."""
    read = {device.path: len(relay.pushes.came[device.path]) for device in relay.owners}  # how many were opened
    smp, cpu, started = relay.world.smp, relay.relay.cpu(), time.monotonic()
    await smp.call("begin", rate=RATE)
    await asyncio.sleep(size.seconds)
    out.cpu = (relay.relay.cpu() - cpu) / (time.monotonic() - started)
    told = {bytes.fromhex(nonce): at for nonce, at in await smp.call("end")}
    took: dict[bool, list[float]] = {False: [], True: []}
    deadline = time.monotonic() + _LATE
    while told and time.monotonic() < deadline:
        await asyncio.sleep(_POLL)
        for nonce, at, is_web_push in _came(relay, read):
            await asyncio.sleep(0)  # to open them all at once would hold up the phones, which are timed here
            if nonce in told:
                took[is_web_push].append((at - told.pop(nonce)) / 1e9)
    out.lost = len(told)
    out.push, out.web_push = (percentile(sorted(took[kind]), 99) if took[kind] else math.inf for kind in (False, True))


def _came(relay: Besieged, read: dict[str, int]) -> Iterator[tuple[bytes, int, bool]]:
    """What was pushed to honest devices since: nonce, when, whether by Web Push."""
    for device in relay.owners:
        came = relay.pushes.came[device.path]
        while (i := read[device.path]) < len(came):
            read[device.path], (body, at) = i + 1, came[i]
            content = device.content(body)
            for info in content.infos if isinstance(content, Notifications) else ():
                yield info.nonce, at, device.browser is not None


async def _reconnect(relay: Besieged) -> float:
    """All honest servers drop their connections: seconds until all their queues are subscribed again."""
    at = await relay.world.smp.call("drop")
    while time.monotonic() - at < RECONNECT_LIMIT:
        if (complete := await relay.subscribed()) is not None:
            return float(complete - at)
        await asyncio.sleep(_POLL)
    return math.inf


async def _own(relay: Besieged, victim: Device, out: Figures) -> float:
    """The owner registers his device while others do: the seconds until it is ACTIVE."""
    started = time.monotonic()
    try:
        await register(OWNER, relay.relay.address, victim, relay.pushes, patience=OWNER_LIMIT)
    except FAILED as e:
        out.words.append(f"owner: {e!r}")
        return math.inf
    return time.monotonic() - started


def _tell(seen: Seen, out: Figures) -> None:
    out.check = percentile(sorted(seen.checks), 99) if seen.checks else math.inf
    out.new_phone = max(seen.registered, default=math.inf)
    out.neighbour = max(seen.served, default=math.inf)
    out.refused = len(seen.refused)
    out.words += seen.refused
