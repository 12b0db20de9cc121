"""`ntf-server vapid`: the public key that apps subscribe to Web Push with; and another one in its place."""

import argparse
import json
import os
import time
from pathlib import Path

from ntf_server.admin.socket import NotRunningError, ask
from ntf_server.admin.vapid import VAPID, told
from ntf_server.cli import arguments as common
from ntf_server.cli.errors import UsageError
from ntf_server.config import files as config
from ntf_server.config.edit import EditError, Value, editing
from ntf_server.config.identity_files import write_file
from ntf_server.config.source import CONFIG_FILE, PREFIX, load_settings
from ntf_server.observe.moments import day_of
from ntf_server.push.jose import b64, generate_key, key_pem, public_point

_ROTATE = "rotate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    what = f"{_ROTATE}: makes a new key and writes it into the configuration; the old one stays for what was subscribed"
    parser.add_argument("action", nargs="?", choices=[_ROTATE], help=what)
    parser.add_argument("--json", action="store_true", help="as one line of JSON, with the older keys")


def run(arguments: argparse.Namespace) -> int:
    """What the running server uses; without one, what it would."""
    directory = common.directory(arguments)
    if arguments.action == _ROTATE:
        return _rotate(directory, as_json=arguments.json)
    try:
        answer = ask(config.load_admin_socket(directory), VAPID)
    except NotRunningError:
        answer = told(*config.load_vapid_keys(directory))
    if answer["key"] is None:
        raise _off(directory)
    print(json.dumps(answer) if arguments.json else f"VAPID: {answer['key']}")
    return 0


def _off(directory: Path) -> UsageError:
    return UsageError(f"{directory / CONFIG_FILE}: [web_push] key_file: is not set, so Web Push is off; set it")


def _rotate(directory: Path, *, as_json: bool) -> int:
    """The new key is there before the configuration names it, which is replaced at once: after a crash all is old, or
    all is new. A running server goes on as before until it is reloaded.
    """
    for name in ("KEY_FILE", "OLD_KEY_FILES"):
        if (variable := f"{PREFIX}WEB_PUSH__{name}") in os.environ:
            raise UsageError(f"{variable}: is set, and wins over {directory / CONFIG_FILE}; write it into that instead")
    current, older = config.load_vapid_keys(directory)
    if current is None:
        raise _off(directory)
    settings = load_settings(directory)
    name = config.vapid_key_file(directory, settings)
    new_name = _free_name(directory, name)
    file, key = directory / CONFIG_FILE, generate_key()
    values: dict[str, Value] = {"key_file": new_name, "old_key_files": [name, *settings.web_push.old_key_files]}
    try:
        write_config = editing(file, "web_push", values)
    except EditError as e:
        make = f"umask 077; openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {directory / new_name}"
        what = f"{file.resolve()}: is written in a way that is not changed here"
        raise UsageError(f"{what}; run `{make}`, and set {e}") from None
    write_file(directory / new_name, key_pem(key), like=directory / name)
    try:
        write_config()
    except OSError:
        (directory / new_name).unlink()
        raise
    if as_json:
        print(json.dumps(told(key, (current, *older))))
        return 0
    print(f"New key    {directory / new_name}")
    print(f"Old key    {directory / name}: keep it, what was subscribed with it is pushed to with it")
    print(f"VAPID: {b64(public_point(key))}")
    print("`ntf-server reload` makes a running server use it.")
    return 0


def _free_name(directory: Path, name: str) -> str:
    """Of a file beside the old key, with today's date (UTC)."""
    stem, number = f"vapid-{day_of(time.time())}", 1
    while (directory / (free := str(Path(name).with_name(f"{stem}{f'-{number}' * (number > 1)}.key")))).exists():
        number += 1
    return free
