"""`ntf-server backup`."""

import argparse
import json
import os
import time
from pathlib import Path

from ntf_server.archive.make import Source, make
from ntf_server.cli import arguments as common
from ntf_server.config.files import load_database_path, load_master_key, load_store
from ntf_server.config.source import load_settings
from ntf_server.store.sqlite.backup import backup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    parser.add_argument("file", metavar="TARGET", type=Path, help="the file that is made; not there yet")
    parser.add_argument(
        "--database", action="store_true", help="the database alone, as a database that can be put in its place"
    )
    parser.add_argument("--json", action="store_true", help="as one line of JSON")


def run(arguments: argparse.Namespace) -> int:
    """Whether or not the server runs."""
    common.quiet_store()
    began = time.monotonic()
    directory, target = common.directory(arguments), arguments.file
    if arguments.database:
        size, holds, variables = backup(load_database_path(directory), target), ["database"], []
    else:
        settings = load_settings(directory)
        master_key = load_master_key(directory, settings)
        with common.ended_by_signals():
            made = make(Source(directory, settings, load_store(directory), os.environ), master_key, target)
        size, variables = made.size, list(made.manifest.variables)
        holds = [member.origin or member.name for member in made.manifest.files]
    seconds = time.monotonic() - began
    if arguments.json:
        told = {"file": str(target), "size": size, "seconds": round(seconds, 3), "holds": holds, "variables": variables}
        print(json.dumps(told))
        return 0
    print(f"{target}: {size / 2**20:.1f} MiB in {seconds:.1f} s")
    if arguments.database:
        return 0
    print(f"In it: {', '.join(holds)}.")
    if variables:
        print(f"Not in it, as they are variables: {', '.join(variables)}.")
    print("It opens with the master key only, which is not in it: keep both, in different places.")
    return 0
