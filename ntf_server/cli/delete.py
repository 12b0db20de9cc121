"""`ntf-server delete`."""

import argparse
import shutil
from pathlib import Path

from ntf_server.cli import arguments as common
from ntf_server.cli.errors import UsageError
from ntf_server.config import files as config
from ntf_server.config import identity_files
from ntf_server.config.source import CONFIG_FILE
from ntf_server.store.sqlite.file import lock_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(arguments: argparse.Namespace) -> int:
    """1 if the answer was no."""
    directory = common.directory(arguments)
    file = directory / CONFIG_FILE
    if not file.exists():
        raise UsageError(f"{file}: not found; nothing was deleted")
    store = config.load_store(directory)
    socket = config.load_admin_socket(directory)
    print(
        f"The identity in {directory} and the database {store} will be gone: devices cannot use this server again."
        if isinstance(store, Path)
        else f"The identity in {directory} will be gone. What is in {store} stays: other nodes may use it."
    )
    if not arguments.yes and not common.confirmed("DELETE", "delete them"):
        print("Nothing was deleted.")
        return 1
    if isinstance(store, Path):
        with lock_file(store):  # not under a running server
            for suffix in ("", "-wal", "-shm", ".lock"):
                store.with_name(store.name + suffix).unlink(missing_ok=True)
    socket.unlink(missing_ok=True)  # one that a killed server left
    for name in (CONFIG_FILE, *identity_files.FILES):
        (directory / name).unlink(missing_ok=True)
    if not any(directory.iterdir()):
        shutil.rmtree(directory)
    return 0
