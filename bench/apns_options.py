"""How benches run the mock APNs of `apns_load`, and how a relay is told of it."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from control import Child, child

from ntf_server.testing.tls import throwaway_tls


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of another server that must know the mock, and of the mock's connections."""
    add = parser.add_argument
    add("--against", metavar="ntf://...", help="another server, whose AT is our mock: measured too")
    add("--against-pid", type=int, metavar="PID", help="its process, if it is on this machine")
    add("--only-against", action="store_true", help="and not our relay")
    add("--streams", type=int, default=1000, metavar="N", help="that APNs takes on a connection (%(default)s)")
    add("--apns-port", type=int, default=0, metavar="PORT", help="of the mock (any)")
    add("--apns-cert", type=Path, metavar="PEM", help="chain of the mock (a new one)")
    add("--apns-key", type=Path, metavar="PEM", help="its key")
    add("--apns-ca", type=Path, metavar="PEM", help="what our relay trusts then")


def check_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Exits if options make no sense together."""
    if (arguments.only_against or arguments.against_pid) and not arguments.against:
        parser.error("--against is missing")
    given = [arguments.apns_cert, arguments.apns_key, arguments.apns_ca]
    if any(given) and not all(given):
        parser.error("--apns-cert, --apns-key and --apns-ca go together")


@asynccontextmanager
async def mock_apns(arguments: argparse.Namespace) -> AsyncIterator[tuple[Child, dict[str, str]]]:
    """The mock, and the environment of a relay of ours that pushes through it."""
    with throwaway_tls() as tls:
        cert, key = arguments.apns_cert or tls.cert_file, arguments.apns_key or tls.key_file
        options = ("--cert", cert, "--key", key, "--port", arguments.apns_port, "--streams", arguments.streams)
        async with child("apns_load.py", *map(str, options)) as mock:
            apns = {"HOST": "localhost", "PORT": mock.ready["port"], "CA_FILE": arguments.apns_ca or tls.ca_file}
            yield mock, {f"NTF_SERVER__APNS__TEST__{name}": str(value) for name, value in apns.items()}
