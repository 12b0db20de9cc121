"""`ntf-server servers`: SMP servers, as the store wants them and as the running server has them."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ntf_server.admin.servers import COUNT, LOOK, add, count, nothing, wanted
from ntf_server.admin.socket import AdminError, NotRunningError
from ntf_server.cli import arguments as common
from ntf_server.cli.asking import ask_pages, ask_running
from ntf_server.observe.condition import duration
from smp_bridge.address import ServerAddress

_SHOWN: Final = 100
UNKNOWN: Final = "nothing is subscribed on an SMP server of this name"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    text = "List SMP servers: how many subscriptions are wanted and active, sessions, last failures."
    action = actions.add_parser("list", help=text, description=text)
    common.add_path(action)
    action.add_argument("--limit", type=common.count, default=_SHOWN, metavar="N", help=f"so many at most ({_SHOWN})")
    action.add_argument("--json", action="store_true", help="as one line of JSON")
    text = "Show all that is known of an SMP server."
    action = actions.add_parser("show", help=text, description=text)
    common.add_path(action)
    action.add_argument("host", metavar="HOST", help="as its address has it")
    action.add_argument("--json", action="store_true", help="as one line of JSON")


def run(arguments: argparse.Namespace) -> int:
    """1 if there is no such server."""
    found, runs = known(common.directory(arguments))
    if arguments.action == "list":
        return _list(arguments, found, runs=runs)
    host = arguments.host.lower().strip("[]")
    chosen = [one for one in found if host in _hosts(one["server"])]
    if not chosen:
        raise AdminError(UNKNOWN)
    if arguments.json:
        print(json.dumps({"running": runs, "servers": chosen}))
    else:
        print("\n\n".join("\n".join(_lines(one, runs=runs)) for one in chosen))
    return 0


def known(directory: Path) -> tuple[list[dict[str, Any]], bool]:
    """SMP servers: `server`, its address; `wanted`, how many subscriptions should be active; `statuses`, `associated`
    (see `admin.servers.count`); `session`, how it is (see `admin.servers.look`), None: this node has it not, or does
    not run. Own ones first, then by `wanted`. And whether a server runs here.
    """
    counts: dict[ServerAddress, dict[str, Any]] = {}  # addresses are the same however they are spelled
    for page in ask_pages(directory, COUNT, count):
        for server, more in page["servers"].items():
            add(counts.setdefault(ServerAddress.from_text(server), nothing()), more)
    looks = _looks(directory)
    found = []
    for address in {**counts, **(looks or {})}:
        counted, session = counts.get(address) or nothing(), (looks or {}).get(address)
        found.append({"server": str(address), "wanted": wanted(counted["statuses"]), **counted, "session": session})
    found.sort(key=lambda one: (not (one["session"] and one["session"]["own"]), -one["wanted"], one["server"]))
    return found, looks is not None


def _looks(directory: Path) -> dict[ServerAddress, Any] | None:
    """Of the running server, None: there is none."""
    try:
        pages = ask_running(directory, LOOK)
    except NotRunningError:
        return None
    return {ServerAddress.from_text(text): told for page in pages for text, told in page["servers"].items()}


def _list(arguments: argparse.Namespace, found: list[dict[str, Any]], *, runs: bool) -> int:
    shown = found[: arguments.limit]
    more = len(found) - len(shown)
    if arguments.json:
        print(json.dumps({"running": runs, "servers": shown, "more": more}))
        return 0
    if shown:
        widest = max(len(name_of(one["server"])) for one in shown)
        print(f"{'server':<{widest}}  {'wanted':>7}  {'active':>7}  {'others':>7}  session")
    for one in shown:
        others = sum(one["statuses"].values()) - one["wanted"]
        active = one["session"]["active"] if one["session"] else "-"
        text = session_text(one, runs=runs)
        print(f"{name_of(one['server']):<{widest}}  {one['wanted']:>7}  {active:>7}  {others:>7}  {text}")
    if more:
        print(f"And {more} more: --limit shows them.")
    elif not shown:
        print("Nothing is subscribed anywhere.")
    if not runs:
        print("The server does not run: this is what its store wants.")
    return 0


def name_of(server: str) -> str:
    """Its first host, and its port if the address names one."""
    address = ServerAddress.from_text(server)
    host = f"[{address.hosts[0]}]" if ":" in address.hosts[0] else address.hosts[0]
    return f"{host}:{address.port}" if address.port else host


def _hosts(server: str) -> list[str]:
    return [host.lower().strip("[]") for host in ServerAddress.from_text(server).hosts]


def session_text(one: dict[str, Any], *, runs: bool) -> str:
    """In a few words."""
    session = one["session"]
    if not runs:
        return "-"
    if session is None:
        return "not of this node" if one["wanted"] else "none, nothing is wanted"
    kind = "own, " if session["own"] else ""
    if session["connected"]:
        service = " as a service" if session["service"] else ""
        return f"{kind}connected{service} for {duration(session['for'])}"
    failure = f": {session['failure']}" if session["failure"] else ""
    return f"{kind}away for {duration(session['for'])}{failure}{_next(session)}"


def _next(session: dict[str, Any]) -> str:
    retry_in = session["retry_in"]
    return "" if retry_in is None else f", next try in {duration(retry_in)}"


def _lines(one: dict[str, Any], *, runs: bool) -> Iterator[str]:
    statuses = ", ".join(f"{number} {status}" for status, number in sorted(one["statuses"].items()))
    yield f"server         {one['server']}"
    yield f"wanted         {one['wanted']} subscriptions"
    yield f"all            {statuses or 'none'}"
    yield f"associated     {one['associated']} with our service there"
    if not runs:
        yield "session        the server does not run"
        return
    yield f"session        {session_text(one, runs=runs)}"
    if (session := one["session"]) is None:
        return
    state = "all were asked for" if session["complete"] else "not all were asked for yet"
    yield f"subscribed     {session['active']} active, {session['pending']} pending; {state}"
    yield f"own            {'yes' if session['own'] else 'no'}"
    yield f"proven         {'yes' if session['proven'] else 'no: it has not confirmed a subscription of late'}"
    if session["failure"]:
        ago = f"{duration(session['failed_ago'])} ago"
        yield f"last failure   {ago}: {session['failure']}: {common.printable(session['reason'])}"
    else:
        yield "last failure   none since the start"
