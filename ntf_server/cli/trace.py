"""`ntf-server trace`."""

import argparse
import json
import time
from typing import Any, Final

from ntf_server.admin.socket import ask
from ntf_server.admin.trace import TRACE, trace
from ntf_server.cli import arguments as common
from ntf_server.cli.asking import ask_either
from ntf_server.cli.tokens import last_push, why
from ntf_server.config import files as config
from ntf_server.observe.moments import moment
from ntf_server.store.contract import Store

_PAUSE: Final = 1.0  # seconds between two looks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    what = "a token's or a subscription's id (-- before one that begins with -), or a device's fingerprint in the log"
    parser.add_argument("what", metavar="TOKEN-ID|SUBSCRIPTION-ID|FINGERPRINT", help=what)
    parser.add_argument("--follow", action="store_true", help="go on with what ends from now on, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="as one line of JSON; with --follow one more for each push")


def run(arguments: argparse.Namespace) -> int:
    """Of the running server, else of its store."""
    directory, what = common.directory(arguments), arguments.what
    if not arguments.follow:
        answer = ask_either(directory, TRACE, lambda store: _of_the_store(store, what), what=what)
        _print(answer, as_json=arguments.json)
        return 0
    socket = config.load_admin_socket(directory)
    answer = ask(socket, TRACE, what=what)
    _print(answer, as_json=arguments.json)
    while True:
        time.sleep(_PAUSE)
        answer = ask(socket, TRACE, what=what, after=answer["next"])
        for push in answer["pushes"]:
            print(json.dumps(push) if arguments.json else _line(push), flush=True)


async def _of_the_store(store: Store, what: str) -> dict[str, Any]:
    return {**await trace(store, what, lambda _fingerprint, after: ([], after)), "pushes": None}


def _print(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer))
        return
    if token := answer["token"]:
        print(f"device        {token['provider']} {answer['fingerprint']}")
        print(f"registration  {token['status']}{why(token)}, last command {moment(token['active_at'])}")
    else:
        print(f"device        {answer['fingerprint']}, no registration that is known by that")
    if subscription := answer["subscription"]:
        print(f"subscription  on {subscription['server']}: {subscription['status']}")
    if token:
        print(f"last push     {last_push(token['last_push'])}")
    if answer["pushes"] is None:
        print("The server does not run: of other pushes nothing is known.")
    elif not answer["pushes"]:
        print("No push ended lately on this node.")
    for push in answer["pushes"] or ():
        print(_line(push))


def _line(push: dict[str, Any]) -> str:
    service = f" {push['service']}" if push["service"] else ""
    return (
        f"{moment(push['at'])}  {push['provider']}{service}  {push['kind']}, {push['age']:.1f} s old, attempt"
        f" {push['attempt']}: {push['outcome']}{why(push)}, id {push['push']}"
    )
