"""`ntf-server demo`."""

import argparse
import asyncio
from typing import Final

from ntf_server import demo

_PROVIDERS: Final = ("apns", "fcm", "webpush")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    parser.add_argument("--provider", choices=_PROVIDERS, default="apns", help="who delivers the pushes (apns)")
    parser.add_argument("--keep", action="store_true", help="stay up afterwards, and print addresses to play with")


def run(arguments: argparse.Namespace) -> int:
    """1 if it did not hold."""
    return asyncio.run(demo.run(provider=arguments.provider, keep=arguments.keep))
