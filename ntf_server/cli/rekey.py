"""`ntf-server rekey`."""

import argparse
import asyncio
from pathlib import Path

from ntf_server.cli import arguments as common
from ntf_server.cli.errors import UsageError
from ntf_server.config import files as config
from ntf_server.config import identity_files
from ntf_server.config.source import CONFIG_FILE, load_settings
from ntf_server.store.sealing import MasterKey, generate_key_text
from ntf_server.store.sqlite.rekey import rekey


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    new = parser.add_mutually_exclusive_group()
    new.add_argument("--new-key-file", metavar="FILE", help="new master key; made if the file does not exist")
    new.add_argument("--new-key-command", metavar="COMMAND", help="prints the new master key")
    parser.add_argument("--reseal", action="store_true", help="seal every value anew too, with a new database key")


def run(arguments: argparse.Namespace) -> int:
    """While the server is stopped."""
    directory = common.directory(arguments)
    database = config.load_database_path(directory)
    settings = load_settings(directory)
    old = new = config.load_master_key(directory, settings)
    if arguments.new_key_file:
        path = Path(arguments.new_key_file)
        if not path.exists():
            identity_files.write_file(path, f"{generate_key_text()}\n".encode())
        new = MasterKey.from_file(path)
    elif arguments.new_key_command:
        new = MasterKey.from_command(arguments.new_key_command)
    elif not arguments.reseal:
        raise UsageError("rekey: give --new-key-file, --new-key-command or --reseal")
    done = asyncio.run(rekey(database, old, new, reseal=arguments.reseal))
    if arguments.reseal:
        print(f"Sealed anew: {done.tokens} tokens, {done.subscriptions} subscriptions.")
    if new is not old:
        where = f"{directory / CONFIG_FILE}, [store]"
        print(
            f"The database needs the new master key from now on: name it in {where}, and let the server's user read it."
            " `ntf-server check` tries that."
        )
    return 0
