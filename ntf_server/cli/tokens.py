"""`ntf-server tokens invalidate`."""

import argparse
import asyncio
from pathlib import Path

from ntf_server.admin.socket import NotRunningError, ask
from ntf_server.admin.tokens import INVALIDATE, invalidate
from ntf_server.cli import arguments as common
from ntf_server.cli.errors import UsageError
from ntf_server.config import files as config
from ntf_server.config.source import load_settings
from ntf_server.store.open import open_store
from ntf_server.store.redis.url import RedisUrl
from smp_bridge.ntf import InvalidReason, TokenStatus

_STATUSES = [s.value for s in TokenStatus if s is not TokenStatus.NEW]  # of which there are no records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    text = "Make all tokens of a status INVALID: their apps are told so, and register anew."
    action = actions.add_parser("invalidate", help=text, description=text)
    common.add_path(action)
    action.add_argument("--status", required=True, choices=_STATUSES, help="which tokens")
    action.add_argument("--reason", required=True, choices=[r.value for r in InvalidReason], help="what apps are told")
    action.add_argument("--yes", action="store_true", help="do not ask")


def run(arguments: argparse.Namespace) -> int:
    """By the running server, else on its store. 1 if the answer was no."""
    directory = common.directory(arguments)
    socket, store = config.load_admin_socket(directory), config.load_store(directory)
    status, reason = TokenStatus(arguments.status), InvalidReason(arguments.reason)
    print(f"All tokens that are {status} in {store} will be INVALID ({reason}): nothing is pushed to them.")
    if not arguments.yes and not common.confirmed("INVALIDATE", "do so"):
        print("Nothing was changed.")
        return 1
    try:
        count = ask(socket, INVALIDATE, status=status.value, reason=reason.value)["tokens"]
    except NotRunningError:
        if isinstance(store, Path) and not store.exists():
            raise UsageError(f"{store}: not found; nothing was changed") from None
        count = asyncio.run(_on_the_store(directory, store, status, reason))
    print(f"{count} tokens are INVALID now.")
    return 0


async def _on_the_store(directory: Path, place: Path | RedisUrl, status: TokenStatus, reason: InvalidReason) -> int:
    master_key = config.load_master_key(directory, load_settings(directory))
    store = await open_store(place, directory=directory, master_key=master_key)
    try:
        return await invalidate(store, status, reason)
    finally:
        await store.close()
