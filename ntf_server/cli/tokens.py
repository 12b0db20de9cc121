"""`ntf-server tokens`: registrations, seen and changed by the running server, else on its store."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ntf_server.admin.socket import NotRunningError, ask
from ntf_server.admin.tokens import INVALIDATE, LIST, PURGE, SHOW, chosen_of, invalidate, page, purge, show
from ntf_server.cli import arguments as common
from ntf_server.cli.asking import Page, ask_either, ask_pages, ask_store
from ntf_server.cli.errors import UsageError
from ntf_server.config import files as config
from ntf_server.observe.moments import moment
from ntf_server.store.contract import Store
from ntf_server.store.inspection import DAMAGED
from smp_bridge.ntf import InvalidReason, Provider, TokenStatus

_STATUSES: Final = [s.value for s in TokenStatus if s is not TokenStatus.NEW]  # of which there are no records
_PROVIDERS: Final = [p.value for p in Provider]
_SHOWN: Final = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text)
        common.add_path(action)
        return action

    action = add("list", "List registrations: devices by their fingerprints, status, last push.")
    action.add_argument("--status", choices=[*_STATUSES, DAMAGED], help="those of this status alone")
    action.add_argument("--provider", choices=_PROVIDERS, help="those of this provider alone")
    action.add_argument("--limit", type=common.count, default=_SHOWN, metavar="N", help=f"so many at most ({_SHOWN})")
    action.add_argument("--json", action="store_true", help="as one line of JSON")
    action = add("show", "Show the registrations of a device, or one of them by its id.")
    what = "a token's id (-- before one that begins with -), or a device's fingerprint in the log"
    action.add_argument("what", metavar="TOKEN-ID|FINGERPRINT", help=what)
    action.add_argument("--json", action="store_true", help="as one line of JSON")
    action = add("purge", "Delete all tokens of a status without a command for long, with their subscriptions.")
    action.add_argument("--status", required=True, choices=[*_STATUSES, DAMAGED], help="which tokens")
    text = "without a command for so many days; 0: all of this status"
    action.add_argument("--days", required=True, type=common.days, metavar="N", help=text)
    action.add_argument("--provider", choices=_PROVIDERS, help="those of this provider alone")
    action.add_argument("--yes", action="store_true", help="delete them; without it they are only counted")
    action.add_argument("--json", action="store_true", help="as one line of JSON")
    action = add("invalidate", "Make all tokens of a status INVALID: their apps are told so, and register anew.")
    action.add_argument("--status", required=True, choices=_STATUSES, help="which tokens")
    action.add_argument("--reason", required=True, choices=[r.value for r in InvalidReason], help="what apps are told")
    action.add_argument("--yes", action="store_true", help="do not ask")
    action.add_argument("--json", action="store_true", help="with --yes: as one line of JSON")


def run(arguments: argparse.Namespace) -> int:
    """By the running server, else on its store."""
    actions = {"list": _list, "show": _show, "purge": _purge, "invalidate": _invalidate}
    return actions[arguments.action](arguments)


# --- seen


def _list(arguments: argparse.Namespace) -> int:
    limit = arguments.limit + 1  # one more tells that there are more
    asked = {"status": arguments.status, "provider": arguments.provider}
    chosen = chosen_of(asked)
    pages = ask_pages(
        common.directory(arguments),
        LIST,
        lambda store, after: page(store, chosen, after, limit),
        enough=lambda pages: sum(len(p["tokens"]) for p in pages) >= limit,
        **asked,
        limit=limit,
    )
    tokens = [token for one in pages for token in one["tokens"]]
    shown, more = tokens[: arguments.limit], len(tokens) > arguments.limit
    print(json.dumps({"tokens": shown, "more": more}) if arguments.json else "\n".join(_table(shown, more=more)))
    return 0


def _table(tokens: list[dict[str, Any]], *, more: bool) -> Iterator[str]:
    if tokens:
        yield f"{'device':<12}  {'':<2}  {'status':<10}  {'last command':<25}  {'queues':>6}  last push"
    for token in tokens:
        push = token["last_push"]
        last = "none" if push is None else f"{moment(push['at'])} {push['outcome']}"
        device = f"{token['fingerprint']:<12}  {token['provider']:<2}  {token['status']:<10}"
        yield f"{device}  {moment(token['active_at']):<25}  {token['subscriptions']:>6}  {last}"
    if more:
        yield f"These are the first {len(tokens)}: --limit shows more."
    elif not tokens:
        yield "There are none."


def _show(arguments: argparse.Namespace) -> int:
    what = arguments.what
    answer = ask_either(common.directory(arguments), SHOW, lambda store: show(store, what), what=what)
    if arguments.json:
        print(json.dumps(answer))
        return 0
    print("\n\n".join("\n".join(_lines(token)) for token in answer["tokens"]))
    return 0


def _lines(token: dict[str, Any]) -> Iterator[str]:
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(token["statuses"].items()))
    yield f"device         {token['provider']} {token['fingerprint']}"
    yield f"status         {token['status']}{why(token)}"
    yield f"registered     {moment(token['registered_at'])}"
    yield f"last command   {moment(token['active_at'])}"
    yield f"checks         {'every ' + str(token['period']) + ' min' if token['period'] else 'none'}"
    yield f"subscriptions  {token['subscriptions']}{': ' + statuses if statuses else ''}"
    yield f"last push      {last_push(token['last_push'])}"


def last_push(push: dict[str, Any] | None) -> str:
    """As `admin.tokens.told_push` tells of it."""
    return "none" if push is None else f"{moment(push['at'])} {push['outcome']}{why(push)}, id {push['push']}"


def why(told: dict[str, Any]) -> str:
    """Behind what has one, in brackets."""
    return f" ({told['reason']})" if told["reason"] else ""


# --- changed


def _purge(arguments: argparse.Namespace) -> int:
    """1 if they were only counted."""
    asked = {"status": arguments.status, "provider": arguments.provider, "days": arguments.days}
    chosen, delete = chosen_of(asked), arguments.yes

    async def some(store: Store, after: Any) -> Page:
        return await purge(store, chosen, delete=delete, after=after)

    pages = ask_pages(common.directory(arguments), PURGE, some, **asked, delete=delete)
    tokens, subscriptions = (sum(p[name] for p in pages) for name in ("tokens", "subscriptions"))
    if arguments.json:
        print(json.dumps({"tokens": tokens, "subscriptions": subscriptions, "deleted": delete}))
    elif delete:
        print(f"{tokens} tokens with {subscriptions} subscriptions are deleted.")
    else:
        print(f"{tokens} tokens with {subscriptions} subscriptions would be deleted. Nothing was changed: give --yes.")
    return 0 if delete else 1


def _invalidate(arguments: argparse.Namespace) -> int:
    """1 if the answer was no."""
    directory = common.directory(arguments)
    socket, store = config.load_admin_socket(directory), config.load_store(directory)
    status, reason = TokenStatus(arguments.status), InvalidReason(arguments.reason)
    if arguments.json and not arguments.yes:
        raise UsageError("--json goes with --yes; nothing was changed")
    if not arguments.json:
        print(f"All tokens that are {status} in {store} will be INVALID ({reason}): nothing is pushed to them.")
    if not arguments.yes and not common.confirmed("INVALIDATE", "do so"):
        print("Nothing was changed.")
        return 1
    try:
        count = ask(socket, INVALIDATE, status=status.value, reason=reason.value)["tokens"]
    except NotRunningError:
        if isinstance(store, Path) and not store.exists():
            raise UsageError(f"{store}: not found; nothing was changed") from None
        count = ask_store(directory, lambda opened: invalidate(opened, status, reason))
    print(json.dumps({"tokens": count}) if arguments.json else f"{count} tokens are INVALID now.")
    return 0
