"""`ntf-server rekey`."""

import argparse
import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

from ntf_server.cli import arguments as common
from ntf_server.cli.errors import UsageError
from ntf_server.config import files as config
from ntf_server.config import identity_files
from ntf_server.config.edit import EditError, editing, named
from ntf_server.config.settings import Settings
from ntf_server.config.source import CONFIG_FILE, PREFIX, load_settings
from ntf_server.store.sealing import MasterKey, generate_key_text
from ntf_server.store.sqlite.file import is_locked
from ntf_server.store.sqlite.rekey import rekey, rewrap


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    new = parser.add_mutually_exclusive_group()
    new.add_argument("--new-key-file", metavar="FILE", help="new master key; made if the file does not exist")
    new.add_argument("--new-key-command", metavar="COMMAND", help="prints the new master key")
    parser.add_argument("--reseal", action="store_true", help="seal every value anew too, with a new database key")


def run(arguments: argparse.Namespace) -> int:
    """Also while the server runs, unless values are sealed anew."""
    directory = common.directory(arguments)
    database = config.load_database_path(directory)
    settings = load_settings(directory)
    if not (arguments.new_key_file or arguments.new_key_command or arguments.reseal):
        raise UsageError("rekey: give --new-key-file, --new-key-command or --reseal")
    old = config.load_master_key(directory, settings)
    new = _new_key(arguments, directory, settings) or old
    if new is not old and new.key_id == old.key_id:
        raise UsageError("rekey: this is the master key already; give another one")
    running = not arguments.reseal and is_locked(database)
    if running:
        rewrap(database, old, new)
    else:
        done = asyncio.run(rekey(database, old, new, reseal=arguments.reseal))
        if arguments.reseal:
            print(f"Sealed anew: {done.tokens} tokens, {done.subscriptions} subscriptions.")
    if new is not old:
        print("\n".join(_told(arguments, directory, settings, running=running)))
    return 0


def _new_key(arguments: argparse.Namespace, directory: Path, settings: Settings) -> MasterKey | None:
    """None: it stays."""
    if arguments.new_key_command:
        return MasterKey.from_command(arguments.new_key_command)
    if not arguments.new_key_file:
        return None
    path = Path(arguments.new_key_file)
    if not path.exists():
        like = directory / settings.store.master_key_file
        identity_files.write_file(path, f"{generate_key_text()}\n".encode(), like=like if like.exists() else None)
    return MasterKey.from_file(path)


def _told(arguments: argparse.Namespace, directory: Path, settings: Settings, *, running: bool) -> Iterator[str]:
    """What was done, and is to be done, once the database needs the new key."""
    file = directory / CONFIG_FILE
    if line := _configure(arguments, directory, settings):
        yield f"The database needs the new master key from now on, and {file} says so: [store] {line}"
    else:
        yield (
            f"The database needs the new master key from now on: name it in {file}, [store], and let the server's user"
            " read it. `ntf-server check` tries that."
        )
    yield "Keep the old master key: backups from before open with it, and with no other."
    if running:
        yield "The server goes on. `ntf-server reload` has it look whether the next start will find the key."


def _configure(arguments: argparse.Namespace, directory: Path, settings: Settings) -> str:
    """Name the new key in the file, if the old one was named there; the line, or empty."""
    elsewhere = [f"{PREFIX}STORE__{name}" for name in ("MASTER_KEY", "MASTER_KEY_COMMAND", "MASTER_KEY_FILE")]
    store = settings.store
    if store.master_key or any(name in os.environ for name in elsewhere):
        return ""
    if arguments.new_key_command:
        key, value = "master_key_command", arguments.new_key_command
    elif store.master_key_command:  # which would win over a file
        return ""
    else:
        key, value = "master_key_file", named(Path(arguments.new_key_file), directory)
    try:
        editing(directory / CONFIG_FILE, "store", {key: value})()
    except (EditError, OSError):  # the database has its key: what is to be done is told
        return ""
    return f"{key} = {value}"
