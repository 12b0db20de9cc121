"""What an operator does to all registrations of a kind, while the relay runs or not."""

from collections.abc import Mapping
from typing import Any, Final

from ntf_server.admin.socket import AdminError
from ntf_server.observe.events import Event, EventLog
from ntf_server.store.contract import StoreError, Tokens
from ntf_server.store.records import Cursor
from smp_bridge.ntf import InvalidReason, TokenStatus

events = EventLog(__name__)

INVALIDATE: Final = "tokens invalidate"  # the admin socket's command
_SLICE: Final = 1000  # tokens that are looked at in one transaction


async def invalidate(store: Tokens, status: TokenStatus, reason: InvalidReason) -> int:
    """All tokens of a status are INVALID from now on, for this reason: how many they were. Raises StoreError."""
    total = 0
    after: Cursor | None = None
    while True:
        count, after = await store.invalidate(status, reason, after, _SLICE)
        total += count
        if after is None:
            text = "%d tokens that were %s are INVALID (%s) now: an operator asked for it"
            fields: dict[str, Any] = {"count": total, "status": status.value, "reason": reason.value}
            events.tell(Event.TOKENS_INVALIDATED, text, total, status, reason, **fields)
            return total


async def on_invalidate(store: Tokens, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"command": "tokens invalidate", "status": …, "reason": …}`: `tokens`, how many. Raises AdminError."""
    try:
        status, reason = TokenStatus(request["status"]), InvalidReason(request["reason"])
    except (KeyError, ValueError):
        raise AdminError("no such status, or no such reason") from None
    try:
        return {"tokens": await invalidate(store, status, reason)}
    except StoreError as e:
        raise AdminError(str(e)) from e
