"""`ntf-server cert`."""

import argparse
from pathlib import Path

from ntf_server.cli import arguments as common
from ntf_server.config import identity_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    parser.add_argument("--ca-key", metavar="FILE", help="the identity's private key (DIR/ca.key)")
    parser.add_argument(
        "--sign-algorithm", choices=list(common.ALGORITHMS), default="ED448", help="of the new certificate"
    )
    parser.add_argument("--fqdn", type=common.host, metavar="NAME", help="common name (that of the old certificate)")


def run(arguments: argparse.Namespace) -> int:
    """The identity stays."""
    directory = common.directory(arguments)
    ca_key = Path(arguments.ca_key) if arguments.ca_key else directory / identity_files.CA_KEY
    identity_files.renew_certificate(directory, ca_key, common.ALGORITHMS[arguments.sign_algorithm], arguments.fqdn)
    print(f"New {directory / identity_files.SERVER_CRT}: `ntf-server reload` makes a running server use it.")
    return 0
