"""`ntf-server restore`."""

import argparse
import json
import os
from pathlib import Path
from typing import Final

from ntf_server.archive.restore import Key, Restored, restore
from ntf_server.cli import arguments as common
from ntf_server.cli.errors import UsageError
from ntf_server.config.source import PREFIX
from ntf_server.observe.moments import moment
from ntf_server.store.sealing import MasterKey

_VARIABLE: Final = f"{PREFIX}STORE__MASTER_KEY"
_LARGEST: Final = 4096  # bytes of a master key's file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    parser.add_argument("source", metavar="FROM", type=Path, help="a file that `ntf-server backup` made")
    key = parser.add_mutually_exclusive_group()
    key.add_argument(
        "--master-key-file", metavar="FILE", type=Path, help="holds the master key that it was sealed with"
    )
    key.add_argument("--master-key-command", metavar="COMMAND", help=f"prints it (or ${_VARIABLE} is it)")
    parser.add_argument("--json", action="store_true", help="as one line of JSON")


def run(arguments: argparse.Namespace) -> int:
    """Into a folder that is new or empty."""
    common.quiet_store()
    directory = common.directory(arguments)
    key = _key(arguments)
    with common.ended_by_signals():
        done = restore(arguments.source, directory, key, os.environ)
    if arguments.json:
        print(json.dumps(_fields(directory, done)))
    else:
        print("\n".join(_lines(directory, done)))
    return 0


def _key(arguments: argparse.Namespace) -> Key:
    """Raises UsageError, SealingError."""
    if arguments.master_key_command:
        return Key(MasterKey.from_command(arguments.master_key_command))
    if arguments.master_key_file is None:
        if text := os.environ.get(_VARIABLE):
            return Key(MasterKey.from_text(text, _VARIABLE))
        raise UsageError(
            "the backup is sealed: give its master key by --master-key-file FILE or --master-key-command COMMAND"
        )
    try:
        with arguments.master_key_file.open("rb") as file:
            key = file.read(_LARGEST)
    except OSError as e:
        raise UsageError(f"--master-key-file {arguments.master_key_file}: {e.strerror}; give the server's") from None
    return Key(MasterKey.from_bytes(key, str(arguments.master_key_file)), key)


def _lines(directory: Path, done: Restored) -> list[str]:
    manifest = done.manifest
    when = moment(manifest.made_at)
    lines = [f"Restored: {directory}, with the store {done.store}, as of {when}."]
    lines += [f"{origin} was not in the folder: it is {path} now; mend the setting." for path, origin in done.elsewhere]
    if done.key_file is not None:
        lines.append(f"Put the master key into {done.key_file}.")
    if manifest.variables:
        lines.append(
            f"Its settings came from these variables too, which are not in a backup: {', '.join(manifest.variables)}."
        )
    lines += [
        "Never run the old server and this one at once: both have one identity, SMP servers send notifications to the"
        " last one that subscribed only, and devices would miss the others'.",
        f"`ntf-server check --path {directory}` tries it; then start it.",
    ]
    return lines


def _fields(directory: Path, done: Restored) -> dict[str, object]:
    manifest = done.manifest
    return {
        "directory": str(directory),
        "store": str(done.store),
        "made_at": manifest.made_at,
        "files": [member.name for member in manifest.files],
        "elsewhere": {origin: str(path) for path, origin in done.elsewhere},
        "master_key_file": str(done.key_file) if done.key_file else None,
        "variables": list(manifest.variables),
    }
