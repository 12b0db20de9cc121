"""`ntf-server vapid`: the public key that apps subscribe to Web Push with."""

import argparse
import json

from ntf_server.admin.socket import NotRunningError, ask
from ntf_server.admin.vapid import VAPID, told
from ntf_server.cli import arguments as common
from ntf_server.cli.errors import UsageError
from ntf_server.config import files as config
from ntf_server.config.source import CONFIG_FILE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    parser.add_argument("--json", action="store_true", help="as one line of JSON, with the older keys")


def run(arguments: argparse.Namespace) -> int:
    """What the running server uses; without one, what it would."""
    directory = common.directory(arguments)
    try:
        answer = ask(config.load_admin_socket(directory), VAPID)
    except NotRunningError:
        answer = told(*config.load_vapid_keys(directory))
    if answer["key"] is None:
        raise UsageError(f"{directory / CONFIG_FILE}: [web_push] key_file: is not set, so Web Push is off; set it")
    print(json.dumps(answer) if arguments.json else f"VAPID: {answer['key']}")
    return 0
