"""Whether the time of an answer tells more than the answer: no such entity, a wrong key, the right key.

One command at a time over one connection, the ways in turn in a new order each round, so that what else goes on meets
them all alike. See README.md for what is printed.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import devices
from control import run
from devices import Device, KeyKind, new_devices
from ntf_load import Connection
from percentiles import percentile
from report import Row, say, show
from scene import WINDOW, Stage
from wire_relay import Side

from smp_bridge import crypto, ntf
from smp_bridge.transmission import CORR_ID_SIZE, Invalid, Message, encode_blocks, encode_transmission, parse_block

_KINDS: Final[tuple[KeyKind, ...]] = ("ed25519", "ed448", "x25519")
_DEVICES: Final = 100
_WARM: Final = 50  # rounds that are not counted
Entity = tuple[bytes, crypto.AuthPrivateKey]
_COMMANDS: Final[dict[str, Callable[[], Message]]] = {
    "TCHK": ntf.TChk,
    "TVFY": lambda: ntf.TVfy(bytes(32)),
    "TDEL": ntf.TDel,
    "TCRN": lambda: ntf.TCrn(30),
    "SCHK": ntf.SChk,
    "SDEL": ntf.SDel,
}
_CHECKS: Final = ("TCHK", "SCHK")  # which the right key may do as often as it likes


async def ask(connection: Connection, command: bytes, entity: Entity) -> float:
    """Seconds until the answer to one command. Raises RuntimeError if it makes no sense."""
    wire, session = connection
    encoded = encode_transmission(session, os.urandom(CORR_ID_SIZE), entity[0], command, entity[1])
    [content] = encode_blocks(session, [encoded])
    sent = time.perf_counter()
    wire.send(content)
    answered = parse_block(session, await wire.receive())
    seconds = time.perf_counter() - sent
    if len(answered) != 1 or isinstance(answered[0], Invalid):
        raise RuntimeError("an answer belongs to no command")
    return seconds


async def measure(
    connection: Connection, name: str, entities: Sequence[Entity], stranger: crypto.AuthPrivateKey, rounds: int
) -> list[Row]:
    """The medians of the ways of one command, and how far they are apart."""
    command = _COMMANDS[name]().encode(connection[1].version)
    rng = random.Random(name)  # the same order in each run
    ways = ["missing", "wrong key", *(["right key"] if name in _CHECKS else [])]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for count in range(_WARM + rounds):
        id_, key = rng.choice(entities)
        asked = {"missing": (os.urandom(24), stranger), "wrong key": (id_, stranger), "right key": (id_, key)}
        rng.shuffle(ways)
        for way in ways:
            took = await ask(connection, command, asked[way])
            if count >= _WARM:
                seconds[way].append(took)
    ordered = {way: sorted(values) for way, values in seconds.items()}
    missing = ordered["missing"]
    rows = [Row(f"{name}, missing: median", percentile(missing, 50) * 1e6, "us")]
    for way, values in ordered.items():
        if way != "missing":
            more = (percentile(values, 50) - percentile(missing, 50)) * 1e6
            rows.append(Row(f"  {way}: more", more, "us"))
    spread = (percentile(missing, 75) - percentile(missing, 25)) * 1e6
    return [*rows, Row("  half of those missing lie within", spread, "us")]


def entities_of(name: str, owners: Sequence[Device], ids: Sequence[bytes]) -> list[Entity]:
    """What a command is for, with the key of its owner."""
    if name.startswith("S"):
        return [(id_, owners[i % len(owners)].key) for i, id_ in enumerate(ids)]
    return [(owner.token_id, owner.key) for owner in owners]


async def main(arguments: argparse.Namespace) -> None:
    """One run."""
    say(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    side = Side("this", Path(sys.executable).parent)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ntf-bench-")))
        scene = await Stage(stack, folder, [side], quick=False).scene(_DEVICES * len(arguments.keys))
        async with scene.clients(side, await scene.new_folder(side)) as (_, connections):
            for place, kind in enumerate(arguments.keys):
                owners = new_devices(_DEVICES, kind)
                await scene.enrol(connections, owners)
                queues = range(place * _DEVICES, (place + 1) * _DEVICES)
                _, ids = await devices.subscribe(connections, owners, scene.servers, queues, window=WINDOW)
                rows: list[Row] = []
                [stranger] = new_devices(1, kind)
                for name in arguments.commands:
                    entities = entities_of(name, owners, ids)
                    rows += await measure(connections[0], name, entities, stranger.key, arguments.rounds)
                show(f"Time of an answer, {kind} keys, {arguments.rounds:,} rounds", rows)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--keys", nargs="+", choices=_KINDS, default=_KINDS, help="of devices (all)")
    add("--commands", nargs="+", choices=list(_COMMANDS), default=list(_COMMANDS), help="that are timed (all)")
    add("--rounds", type=int, default=3000, metavar="N", help="of each command (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    run(main(parse()))
