"""`ntf-server migrate`."""

import argparse
import asyncio
import sys
import time
from typing import Final, TextIO

from ntf_server.cli import arguments as common
from ntf_server.cli.errors import UsageError
from ntf_server.config import files as config
from ntf_server.config.source import CONFIG_FILE, load_settings
from ntf_server.store.migrate import Migrated, migrate
from ntf_server.store.open import Shared

_BAR: Final = 30  # characters
_EVERY: Final = 0.1  # seconds between two pictures of the bar
_LINES: Final = 10.0  # and between two lines, where nobody looks at them
_MOST: Final = {"shards": 4096, "buckets": 256}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    parser.add_argument("source", metavar="FROM-URL", help="as [store] url: what is moved, and stays as it is")
    parser.add_argument("target", metavar="TO-URL", help="as [store] url: new, or what this command did not end with")
    parser.add_argument("--shards", metavar="N", type=int, help="of a new Redis, for all its life (64)")
    parser.add_argument(
        "--buckets", metavar="N", type=int, help="of each SMP server's queues there (1; in a cluster 16)"
    )


def run(arguments: argparse.Namespace) -> int:
    """While no server runs on either."""
    directory = common.directory(arguments)
    settings = load_settings(directory)
    source = config.parse_store(arguments.source, directory, "FROM-URL")
    target = config.parse_store(arguments.target, directory, "TO-URL")
    for name, most in _MOST.items():
        if (number := getattr(arguments, name)) is not None and not 1 <= number <= most:
            raise UsageError(f"--{name}: from 1 to {most}")
    common.quiet_store()
    progress = Progress(sys.stderr)
    try:
        done = asyncio.run(
            migrate(
                source,
                target,
                master_key=config.load_master_key(directory, settings),
                tell=progress,
                shards=arguments.shards,
                buckets=arguments.buckets,
                shared=Shared("", settings.store.wait_replicas, settings.store.wait_aof),
            )
        )
    finally:
        progress.end()
    print(told(done))
    print(
        f"Put TO-URL into {directory / CONFIG_FILE}, [store] url, on each node, and start. The old store is as"
        " it was: never start a server on it again, or what devices do meanwhile is lost."
    )
    return 0


def told(done: Migrated) -> str:
    """The numbers."""
    counts = ", ".join(f"{done.counts.get(kind, 0)} {kind}" for kind in KINDS)
    lines = [f"Moved, read back and found the same: {counts}."]
    if done.left_out:
        left_out = ", ".join(f"{count} {kind}" for kind, count in sorted(done.left_out.items()))
        lines.append(f"Left out, since they cannot be read or count no more: {left_out}.")
    return "\n".join(lines)


KINDS: Final = ("servers", "registrations", "subscriptions", "notifications")


class Progress:
    """On a terminal one line that is written anew; else a line now and then."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._at = float("-inf")
        self._what = ""
        self._open = False  # a line that has no end yet

    def __call__(self, what: str, done: int, total: int, unit: str = "registrations") -> None:
        """So many of all."""
        now = time.monotonic()
        over = done >= total
        if what == self._what and not over and now - self._at < (_EVERY if self._live else _LINES):
            return
        self._at, self._what = now, what
        share = done / total if total else 1.0
        numbers = f"{what}: {done} of {total} {unit}"
        if self._live:
            bar = "#" * round(_BAR * share)
            self._out.write(f"\r[{bar:<{_BAR}}] {share:4.0%} {numbers}\x1b[K")
            self._open = True
        else:
            self._out.write(f"{numbers}\n")
        self._out.flush()

    def end(self) -> None:
        """What follows begins a line."""
        if self._open:
            self._out.write("\n")
            self._out.flush()
            self._open = False
