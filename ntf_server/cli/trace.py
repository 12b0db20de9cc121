"""`ntf-server trace`."""

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any, Final

from ntf_server.admin.socket import NotRunningError, ask
from ntf_server.admin.trace import TRACE, trace
from ntf_server.cli import arguments as common
from ntf_server.cli.errors import UsageError
from ntf_server.config import files as config
from ntf_server.config.source import load_settings
from ntf_server.observe.moments import moment
from ntf_server.store.open import open_store
from ntf_server.store.redis.url import RedisUrl

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
    directory = common.directory(arguments)
    socket = config.load_admin_socket(directory)
    try:
        answer = ask(socket, TRACE, what=arguments.what)
    except NotRunningError:
        if arguments.follow:
            raise
        answer = _of_the_store(directory, arguments.what)
    if arguments.json:
        print(json.dumps(answer))
    else:
        _print(answer)
    while arguments.follow:
        time.sleep(_PAUSE)
        answer = ask(socket, TRACE, what=arguments.what, after=answer["next"])
        for push in answer["pushes"]:
            print(json.dumps(push) if arguments.json else _line(push), flush=True)
    return 0


def _of_the_store(directory: Path, what: str) -> dict[str, Any]:
    place = config.load_store(directory)
    if isinstance(place, Path) and not place.exists():
        raise UsageError(f"{place}: not found; start the server first")
    return asyncio.run(_ask_the_store(directory, place, what))


async def _ask_the_store(directory: Path, place: Path | RedisUrl, what: str) -> dict[str, Any]:
    master_key = config.load_master_key(directory, load_settings(directory))
    store = await open_store(place, directory=directory, master_key=master_key)
    try:
        return {**await trace(store, what, lambda _fingerprint, after: ([], after)), "pushes": None}
    finally:
        await store.close()


def _print(answer: dict[str, Any]) -> None:
    if token := answer["token"]:
        why = f" ({token['reason']})" if token["reason"] else ""
        print(f"device        {token['provider']} {answer['fingerprint']}")
        print(f"registration  {token['status']}{why}, last command {moment(token['active_at'])}")
    else:
        print(f"device        {answer['fingerprint']}, no registration that is known by that")
    if subscription := answer["subscription"]:
        print(f"subscription  on {subscription['server']}: {subscription['status']}")
    if token:
        print(f"last push     {_last(token['last_push'])}")
    if answer["pushes"] is None:
        print("The server does not run: of other pushes nothing is known.")
    elif not answer["pushes"]:
        print("No push ended lately on this node.")
    for push in answer["pushes"] or ():
        print(_line(push))


def _last(push: dict[str, Any] | None) -> str:
    if push is None:
        return "none"
    why = f" ({push['reason']})" if push["reason"] else ""
    return f"{moment(push['at'])} {push['outcome']}{why}, id {push['push']}"


def _line(push: dict[str, Any]) -> str:
    service = f" {push['service']}" if push["service"] else ""
    why = f" ({push['reason']})" if push["reason"] else ""
    return (
        f"{moment(push['at'])}  {push['provider']}{service}  {push['kind']}, {push['age']:.1f} s old, attempt"
        f" {push['attempt']}: {push['outcome']}{why}, id {push['push']}"
    )
