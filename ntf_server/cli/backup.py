"""`ntf-server backup`."""

import argparse
import time
from pathlib import Path

from ntf_server.cli import arguments as common
from ntf_server.config.files import load_database_path
from ntf_server.store.sqlite.backup import backup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    parser.add_argument("file", metavar="FILE", type=Path, help="where the copy goes; not there yet")


def run(arguments: argparse.Namespace) -> int:
    """Whether or not the server runs."""
    began = time.monotonic()
    size = backup(load_database_path(common.directory(arguments)), arguments.file)
    print(f"{arguments.file}: {size / 2**20:.1f} MiB in {time.monotonic() - began:.1f} s")
    return 0
