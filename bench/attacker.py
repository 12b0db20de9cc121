"""One attack in a process of its own: `attacker.py NAME`. Controlled as `control` says:

prepare PLAN...    get ready, as the plan says (see `attacks.base.Plan`)
begin              attack
state              preparing, prepared, under way, in place, or what it failed with
figures            what was done
"""

import argparse
import asyncio
import logging
import resource
import time
from collections.abc import Mapping
from typing import Any

from attacks import ATTACKS
from attacks.base import Attack, Plan, Token
from control import obey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from smp_bridge.address import ServerAddress


class Attacker:
    """Runs it as a task."""

    def __init__(self, kind: type[Attack]) -> None:
        self._kind = kind
        self._attack: Attack | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._began = 0.0, 0.0  # by the clock, and of this process's CPU

    def prepare(self, **plan: Any) -> None:
        """See the module's docstring."""
        plan["target"] = ServerAddress.from_text(plan["target"])
        plan["tokens"] = [
            Token(bytes.fromhex(token_id), Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key)))
            for token_id, key in plan["tokens"]
        ]
        self._attack = self._kind(Plan(**plan))
        self._preparing = asyncio.create_task(self._attack.prepare())

    def begin(self) -> None:
        """See the module's docstring."""
        assert self._attack is not None
        self._began = time.monotonic(), time.process_time()
        self._running = asyncio.create_task(self._attack.run())

    def state(self) -> str:
        """See the module's docstring."""
        assert self._attack is not None
        for task in (self._preparing, self._running):
            if task is not None and task.done() and (error := task.exception()) is not None:
                return f"failed: {error!r}"
        if self._running is not None:
            return "in place" if self._attack.in_place.is_set() else "under way"
        return "prepared" if self._preparing is not None and self._preparing.done() else "preparing"

    def figures(self) -> Mapping[str, float]:
        """See the module's docstring."""
        assert self._attack is not None
        began, cpu = self._began
        busy = (time.process_time() - cpu) / (time.monotonic() - began)
        return {**self._attack.figures(), "% of a core": 100 * busy}


async def _main(name: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Who is attacked may close what he likes; that is told by figures.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    attacker = Attacker(ATTACKS[name])
    commands = {
        "prepare": attacker.prepare,
        "begin": attacker.begin,
        "state": attacker.state,
        "figures": attacker.figures,
    }
    await obey(commands, {})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One attack.")
    parser.add_argument("name", choices=list(ATTACKS))
    asyncio.run(_main(parser.parse_args().name))
