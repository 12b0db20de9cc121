"""`ntf-server subs`: a subscription; and whether what the store wants is what is subscribed."""

import argparse
import json
from collections import Counter as Tally
from collections.abc import Iterator
from typing import Any, Final

from ntf_server.admin.servers import SHOW, show
from ntf_server.cli import arguments as common
from ntf_server.cli.asking import ask_either
from ntf_server.cli.servers import known, name_of
from ntf_server.config import files as config
from ntf_server.observe.condition import duration
from ntf_server.store.inspection import DAMAGED
from ntf_server.store.redis.url import RedisUrl

_SHOWN: Final = 50  # servers that do not agree
_LATE: Final = 60.0  # seconds that a server may be away, and that a session may take to ask for all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    text = "Show a subscription by its id."
    action = actions.add_parser("show", help=text, description=text)
    common.add_path(action)
    what = "as commands have it (-- before one that begins with -)"
    action.add_argument("what", metavar="SUBSCRIPTION-ID", help=what)
    action.add_argument("--json", action="store_true", help="as one line of JSON")
    text = "Check whether all that should be subscribed is, server by server."
    action = actions.add_parser("check", help=text, description=text)
    common.add_path(action)
    action.add_argument("--json", action="store_true", help="as one line of JSON")


def run(arguments: argparse.Namespace) -> int:
    """Of `check`: 1 if it is not so, or no server runs."""
    return _show(arguments) if arguments.action == "show" else _check(arguments)


def _show(arguments: argparse.Namespace) -> int:
    what = arguments.what
    answer = ask_either(common.directory(arguments), SHOW, lambda store: show(store, None, what), what=what)
    if arguments.json:
        print(json.dumps(answer))
        return 0
    why = f" ({common.printable(answer['error'])})" if answer["error"] else ""
    service = ", by our service there" if answer["associated"] else ""
    print(f"server         {name_of(answer['server'])}")
    print(f"status         {answer['status']}{why}{service}")
    print(f"told its app   {answer['told'] or 'nothing: the server does not run'}")
    print(f"device         {answer['provider']} {answer['fingerprint']}, registration {answer['token']}")
    return 0


# --- check


def _check(arguments: argparse.Namespace) -> int:
    directory = common.directory(arguments)
    servers, runs = known(directory)
    shared = isinstance(config.load_store(directory), RedisUrl)
    wrong = [line for one in servers for line in disagreements(one, shared=shared)] if runs else []
    statuses: Tally[str] = Tally()
    for one in servers:
        statuses.update(one["statuses"])
    if arguments.json:
        found = {"running": runs, "statuses": statuses, "servers": servers, "wrong": wrong}
        print(json.dumps(found))
    else:
        print("\n".join(_screen(servers, statuses, wrong, runs=runs, shared=shared)))
    return 1 if wrong or not runs else 0


def _screen(
    servers: list[dict[str, Any]], statuses: Tally[str], wrong: list[str], *, runs: bool, shared: bool
) -> Iterator[str]:
    wanted = sum(one["wanted"] for one in servers)
    yield f"wanted         {wanted} subscriptions on {sum(one['wanted'] > 0 for one in servers)} SMP servers"
    if runs:
        sessions = [one["session"] for one in servers if one["session"]]
        connected = sum(session["connected"] for session in sessions)
        yield f"active         {sum(session['active'] for session in sessions)} in {connected} sessions of this node"
        yield f"pending        {sum(session['pending'] for session in sessions)}"
    for status, number in sorted(statuses.items()):
        yield f"{status:<13}  {number}"
    if not runs:
        others = "what other nodes have subscribed is theirs to tell" if shared else "nothing is subscribed"
        yield f"The server does not run: {others}. This is what its store wants."
    elif not wrong:
        yield "What the store wants is what is subscribed."
    for line in wrong[:_SHOWN]:
        yield f"- {line}"
    if len(wrong) > _SHOWN:
        yield f"- and {len(wrong) - _SHOWN} more: --json has them"


def disagreements(one: dict[str, Any], *, shared: bool) -> Iterator[str]:
    """What is not as it should be of a server, as `known` gives it. What may pass by itself is none, for a minute."""
    name, wanted, session = name_of(one["server"]), one["wanted"], one["session"]
    if damaged := one["statuses"].get(DAMAGED, 0):
        yield f"{name}: {damaged} subscriptions cannot be read: their apps have to make them anew"
    if session is None:
        if wanted and not shared:
            yield f"{name}: {wanted} are wanted, and the server is not connected to"
        return
    if not session["connected"]:
        if wanted and session["for"] >= _LATE:
            failure = f" ({session['failure']})" if session["failure"] else ""
            yield f"{name}: {wanted} are wanted, and it is away for {duration(session['for'])}{failure}"
        return
    missing = wanted - session["active"] - session["pending"]
    if not session["complete"]:
        if session["for"] >= _LATE:
            yield f"{name}: {missing} of {wanted} that are wanted were not asked for yet"
    elif missing > 0:
        yield f"{name}: {missing} of {wanted} that are wanted are not active"
    elif missing < 0:
        yield f"{name}: {-missing} are active that are not wanted"
