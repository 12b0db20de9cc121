"""CPU of single operations, as ratios to a fixed piece of pure Python, to compare with an earlier run of this bench.

See README.md for what is printed.
"""

import argparse
import asyncio
import gc
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from report import Row, show

from ntf_server.push.payload import apns_body
from ntf_server.store import records
from ntf_server.store.memory import Times
from ntf_server.store.records import (
    Claim,
    Ended,
    Entry,
    Lane,
    NewSubscription,
    NewToken,
    Notification,
    Outcome,
    PushKind,
    Ref,
    Taken,
)
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge import crypto, ntf, smp
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import NONCE_SIZE
from smp_bridge.notifications import parse_notifications
from smp_bridge.transmission import (
    CORR_ID_SIZE,
    Block,
    Session,
    Transmission,
    encode_transmission,
    parse_block,
    verify_transmission,
)

T = TypeVar("T")

_ID_SIZE: Final = 24
_META_SIZE: Final = 144
_TOKENS: Final = 100
_BOX_SIZE: Final = 3000
_WARM: Final = 20  # operations, after which the interpreter has specialized its code
_BASE_SHARE: Final = 0.5  # of the time of a workload's repeat, before which it runs

_SERVER: Final = ServerAddress("smp", ("smp1.example.org",), "", bytes(32))
_TEXT: Final = bytes(range(256)) * 2


def base() -> int:
    """Never to be changed: all ratios, those of saved runs too, are to it."""
    counts: dict[bytes, int] = {}
    total = 0
    for i in range(500):
        key = _TEXT[i % 97 : i % 97 + 3]
        counts[key] = counts.get(key, 0) + len(key)
        total = (total * 31 + key[0]) & 0xFFFFFFFF
    return total ^ sum(counts.values())


@dataclass(frozen=True, slots=True)
class Workload:
    """An operation. `run(rounds, acts)` prepares it `rounds` times, does the first `acts` of them, gives their CPU.

    Those are seconds of all threads.
    """

    name: str
    run: Callable[[int, int], Awaitable[float]]


def plain(name: str, act: Callable[[], object]) -> Workload:
    """One that needs no preparation."""

    async def run(_rounds: int, acts: int) -> float:
        began = time.process_time()
        for _ in itertools.repeat(None, acts):
            act()
        return time.process_time() - began

    return Workload(name, run)


def stored(name: str, act: Callable[[T], Awaitable[object]], prepare: Callable[[], Awaitable[T]]) -> Workload:
    """One of the store; what `prepare` takes does not count."""

    async def run(rounds: int, acts: int) -> float:
        cpu = 0.0
        for number in range(rounds):
            prepared = await prepare()
            if number < acts:
                began = time.process_time()
                await act(prepared)
                cpu += time.process_time() - began
        return cpu

    return Workload(name, run)


# --- what is measured


def _smp_session() -> Session:
    server_key = X25519PrivateKey.generate().public_key()
    return Session("smp", smp.VERSIONS[1], os.urandom(32), server_key)


def _full_block(session: Session) -> Block:
    """Of NMSGs."""
    full = Block(session)
    while True:
        event = smp.NMsg(os.urandom(NONCE_SIZE), os.urandom(_META_SIZE)).encode(session.version)
        if not full.add(encode_transmission(session, b"", os.urandom(_ID_SIZE), event)):
            return full


def block() -> Workload:
    """As the SMP client takes a block apart."""
    session = _smp_session()
    full = _full_block(session)
    content = full.content

    def act() -> list[tuple[bytes, smp.NMsg]]:
        return parse_notifications(session, content) or []

    assert len(act()) == len(full)
    return plain(f"parse an SMP block of {len(full)} NMSGs", act)


def box() -> Workload:
    """With its key still to be derived."""
    secret, nonce, content = os.urandom(32), os.urandom(NONCE_SIZE), os.urandom(_BOX_SIZE)
    return plain(f"box of {_BOX_SIZE} bytes", lambda: crypto.box(secret, nonce, content))


def body() -> Workload:
    """Of a push of one notification."""
    now, device = int(time.time()), ntf.DeviceToken(ntf.Provider.APNS, os.urandom(32).hex().encode())
    ids = os.urandom(_ID_SIZE), os.urandom(NONCE_SIZE), os.urandom(_META_SIZE)
    entry = Entry(1, 1, False, _SERVER, ids[0], now, *ids[1:])
    lane, push_id = Lane(ntf.Provider.APNS), os.urandom(16)
    claim = Claim(1, 1, lane, device, os.urandom(32), PushKind.MESSAGES, now, push_id, entries=(entry,))
    return plain("body of an APNs push", lambda: apns_body(claim, os.urandom(24)))


def sign() -> Workload:
    """With the key as the relay keeps it."""
    session, key = _smp_session(), crypto.quick_private(Ed25519PrivateKey.generate())
    corr_id, notifier_id, command = os.urandom(CORR_ID_SIZE), os.urandom(_ID_SIZE), smp.NSub().encode(smp.VERSIONS[1])
    return plain("encode an NSUB, Ed25519", lambda: encode_transmission(session, corr_id, notifier_id, command, key))


def verify() -> Workload:
    """As for every command of a device."""
    session = Session("ntf", ntf.VERSIONS[1], os.urandom(32), X25519PrivateKey.generate())
    key = Ed25519PrivateKey.generate()
    command = ntf.TChk().encode(session.version)
    filled = Block(session)
    filled.add(encode_transmission(session, os.urandom(CORR_ID_SIZE), os.urandom(_ID_SIZE), command, key))
    [parsed] = parse_block(session, filled.content)
    assert isinstance(parsed, Transmission)
    public = key.public_key()
    assert verify_transmission(session, parsed, public)
    return plain("verify a command, Ed25519", lambda: verify_transmission(session, parsed, public))


def tnew() -> Workload:
    """Its two keys included."""
    device = ntf.DeviceToken(ntf.Provider.APNS, os.urandom(32).hex().encode())
    keys = Ed25519PrivateKey.generate().public_key(), X25519PrivateKey.generate().public_key()
    command = ntf.TNew(device, *keys).encode(ntf.VERSIONS[1])
    return plain("parse a TNEW", lambda: ntf.parse_command(command, ntf.VERSIONS[1]))


def snew() -> Workload:
    """Its private key included."""
    key, ids = Ed25519PrivateKey.generate(), (os.urandom(_ID_SIZE), os.urandom(_ID_SIZE))
    command = ntf.SNew(ids[0], _SERVER, ids[1], key).encode(ntf.VERSIONS[1])
    return plain("parse an SNEW", lambda: ntf.parse_command(command, ntf.VERSIONS[1]))


class Plenty:
    """Room for all. Implements `Places`."""

    total = _TOKENS

    def room(self, _origin: bytes) -> int:
        """See `Places`."""
        return self.total


@dataclass(slots=True)
class Filled:
    """A store with some active tokens, each with a queue; `ids` are the notifiers'; `claims` were taken last."""

    store: SqliteStore
    session: records.Session
    ids: list[bytes]
    claims: list[Claim]

    def notifications(self, count: int) -> list[Notification]:
        """That arrived now."""
        first, now = self.store.arrive(self.session, count)
        sealed = [(os.urandom(NONCE_SIZE), os.urandom(_META_SIZE)) for _ in range(count)]
        return [Notification(i, first + n, now, *sealed[n]) for n, i in enumerate(self.ids[:count])]

    async def arrive(self) -> None:
        """A notification for each token; nobody has a claim."""
        await self.store.record([Outcome(claim, Ended.UNTRIED) for claim in self.claims])
        self.claims = []
        await self.store.notify(self.session, self.notifications(_TOKENS), {})

    async def take(self) -> Taken:
        """Of all tokens."""
        taken = await self.store.take(ntf.Provider.APNS, Plenty())
        self.claims = taken.claims
        return taken

    async def delivered(self) -> list[Outcome]:
        """Of all tokens, after new notifications."""
        await self.arrive()
        taken = await self.take()
        assert len(taken.claims) == _TOKENS
        return [Outcome(claim, Ended.DELIVERED, held=claim.entries) for claim in taken.claims]


@asynccontextmanager
async def _filled() -> AsyncIterator[Filled]:
    with tempfile.TemporaryDirectory(prefix="ntf-bench-") as folder:
        store = await SqliteStore.open(
            Path(folder, "bench.db"), master_key=MasterKey(os.urandom(32)), times=Times(spacing=0.0)
        )
        try:
            ids = [os.urandom(_ID_SIZE) for _ in range(_TOKENS)]
            await asyncio.gather(*(_add(store, i) for i in ids))
            session = await store.acquire(_SERVER)
            assert session is not None
            yield Filled(store, session, ids, [])
        finally:
            await store.close()


async def _add(store: SqliteStore, notifier_id: bytes) -> Ref:
    """An active token with a queue."""
    code = os.urandom(32)
    device = ntf.DeviceToken(ntf.Provider.APNS, os.urandom(32).hex().encode())
    verify_key = crypto.encode_public(Ed25519PrivateKey.generate().public_key())
    keys = (os.urandom(32), os.urandom(32), os.urandom(32))
    token = await store.register(NewToken(os.urandom(_ID_SIZE), device, verify_key, *keys, code))
    assert token is not None
    await store.verify(token.ref, code)
    key = crypto.quick_private(Ed25519PrivateKey.generate())
    await store.subscribe(token.ref, NewSubscription(os.urandom(_ID_SIZE), _SERVER, notifier_id, key))
    return token.ref


def notify(filled: Filled) -> Workload:
    """As many as a full block has."""
    count = len(_full_block(_smp_session()))

    async def prepare() -> list[Notification]:
        return filled.notifications(count)

    return stored(f"store {count} NMSGs", lambda n: filled.store.notify(filled.session, n, {}), prepare)


def take(filled: Filled) -> Workload:
    """Of all tokens."""
    return stored(f"claims of {_TOKENS} tokens", lambda _: filled.take(), filled.arrive)


def record(filled: Filled) -> Workload:
    """Of all tokens, delivered."""
    return stored(f"record {_TOKENS} delivered pushes", filled.store.record, filled.delivered)


PLAIN: Final[dict[str, Callable[[], Workload]]] = {
    "block": block,
    "box": box,
    "body": body,
    "sign": sign,
    "verify": verify,
    "tnew": tnew,
    "snew": snew,
}
STORED: Final[dict[str, Callable[[Filled], Workload]]] = {"notify": notify, "take": take, "record": record}


@asynccontextmanager
async def workloads(keys: Iterable[str]) -> AsyncIterator[dict[str, Workload]]:
    """Those that were asked for."""
    out = {key: PLAIN[key]() for key in keys if key in PLAIN}
    stored_keys = [key for key in keys if key in STORED]
    if not stored_keys:
        yield out
        return
    async with _filled() as filled:
        yield out | {key: STORED[key](filled) for key in stored_keys}


# --- measuring


@dataclass(frozen=True, slots=True)
class Figure(Row):
    """Microseconds of an operation; `ratio` to `base`; `spread` of the repeats; `earlier`: what the ratio was."""

    ratio: float = 1.0
    spread: float = 0.0
    earlier: float | None = None

    def cells(self) -> tuple[str, str, str, str]:
        """Name, CPU, ratio, change."""
        change = f"{self.ratio / self.earlier:.3f} of earlier" if self.earlier else ""
        ratio = f"{self.ratio:,.4f} of base, {self.spread:3.0%}"
        return self.name, f"{self.value:,.2f} {self.unit}", ratio, change


async def measure(workload: Workload, reference: Workload, repeats: int, seconds: float) -> Figure:
    """Each repeat has its own ratio, to `reference` just before it: so both find the machine as busy."""
    count, base_count = await _enough(workload, seconds), await _enough(reference, seconds * _BASE_SHARE)
    times, ratios = [], []
    for _ in range(repeats):
        one_base = await reference.run(base_count, base_count) / base_count
        one = await workload.run(count, count) / count
        times.append(one)
        ratios.append(one / one_base)
    ratio = statistics.median(ratios)
    spread = (max(ratios) - min(ratios)) / ratio
    return Figure(workload.name, statistics.median(times) * 1e6, "µs", ratio=ratio, spread=spread)


async def _enough(workload: Workload, seconds: float) -> int:
    """How many operations take so long."""
    await workload.run(_WARM, _WARM)
    count = 1
    while (taken := await workload.run(count, count)) < seconds / 4:
        count *= 2
    return max(1, round(count * seconds / taken))


async def main(arguments: argparse.Namespace) -> None:
    """One run."""
    earlier = json.loads(arguments.compare.read_text()) if arguments.compare else {}
    figures: dict[str, Figure] = {}
    reference = plain("base: 500 turns of a loop in Python", base)
    async with workloads(arguments.workloads) as chosen:
        gc.collect()
        gc.freeze()
        first = await measure(reference, reference, arguments.repeats, arguments.seconds)
        for key, workload in chosen.items():
            figures[key] = await measure(workload, reference, arguments.repeats, arguments.seconds)
    before = earlier.get("ratios", {})
    rows = [_with_earlier(figure, before.get(key)) for key, figure in figures.items()]
    show(f"CPU of an operation, median of {arguments.repeats}, {_python()}", [first, *rows])
    if earlier and earlier.get("python") != _python():
        print(f"\n  The earlier run was with {earlier.get('python')}.")
    if arguments.save:
        saved = {"python": _python(), "ratios": {key: figure.ratio for key, figure in figures.items()}}
        arguments.save.write_text(json.dumps(saved, indent=2) + "\n")


def _with_earlier(f: Figure, earlier: float | None) -> Figure:
    return Figure(f.name, f.value, f.unit, ratio=f.ratio, spread=f.spread, earlier=earlier)


def _python() -> str:
    return f"{platform.python_implementation()} {platform.python_version()}"


# --- instructions


def instructions(key: str, operations: int) -> None:
    """Count them with callgrind, in runs of this file that differ in the number of operations only."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        sys.exit("--instructions needs valgrind, which is not installed")
    rounds = _WARM + operations
    few, many = (_counted(valgrind, key, rounds, acts) for acts in (_WARM, rounds))
    show(f"Instructions, {operations} operations, {_python()}", [Row(key, round((many - few) / operations), "each")])


def _counted(valgrind: str, key: str, rounds: int, acts: int) -> int:
    """All instructions of a process."""
    with tempfile.TemporaryDirectory(prefix="ntf-bench-") as folder:
        out = Path(folder, "callgrind")
        command = (valgrind, "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable, __file__)
        run = subprocess.run(
            [*command, key, "--rounds", str(rounds), "--acts", str(acts)],
            env=os.environ | {"PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            sys.exit(f"valgrind failed: {run.stderr.strip().splitlines()[-1]}")
        found = [line for line in out.read_text().splitlines() if line.startswith(("summary:", "totals:"))]
    return int(found[-1].split()[1])


async def only(key: str, rounds: int, acts: int) -> None:
    """What is run under valgrind."""
    async with workloads([key]) as chosen:
        await chosen[key].run(rounds, acts)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    keys: list[Any] = [*PLAIN, *STORED]
    add("workloads", nargs="*", metavar="WORKLOAD", help=f"all, or some of: {', '.join(keys)}")
    add("--repeats", type=int, default=9, metavar="N", help="of each (%(default)s)")
    add("--seconds", type=float, default=0.1, metavar="S", help="of a repeat, without its base (%(default)s)")
    add("--save", type=Path, metavar="FILE", help="write the ratios (JSON)")
    add("--compare", type=Path, metavar="FILE", help="show them beside those of this file")
    add("--instructions", action="store_true", help="count instructions of one workload with valgrind")
    add("--operations", type=int, default=100, metavar="N", help="to count them of (%(default)s)")
    add("--rounds", type=int, help=argparse.SUPPRESS)
    add("--acts", type=int, help=argparse.SUPPRESS)
    out = parser.parse_args()
    if unknown := set(out.workloads) - set(keys):
        parser.error(f"no such workload: {', '.join(sorted(unknown))}")
    if out.instructions and len(out.workloads) != 1:
        parser.error("--instructions is of one workload")
    out.workloads = out.workloads or keys
    return out


if __name__ == "__main__":
    options = parse()
    if options.instructions:
        instructions(options.workloads[0], options.operations)
    elif options.acts is not None:
        asyncio.run(only(options.workloads[0], options.rounds, options.acts))
    else:
        asyncio.run(main(options))
