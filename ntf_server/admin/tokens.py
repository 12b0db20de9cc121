"""What an operator sees of registrations, and does to all of a kind, while the relay runs or not.

A device is named by its fingerprint: neither its token nor the registration's id is told.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from ntf_server.admin.ids import FINGERPRINT, parse_id
from ntf_server.admin.socket import AdminError, after_of, asked_of_the_store
from ntf_server.observe.events import Event, EventLog
from ntf_server.store.contract import DamagedRecordError, Store, Tokens
from ntf_server.store.inspection import DAMAGED, Registered
from ntf_server.store.records import Cursor, LastPush, push_uuid
from smp_bridge.ntf import InvalidReason, Provider, TokenStatus

events = EventLog(__name__)

INVALIDATE: Final = "tokens invalidate"  # the admin socket's commands
LIST: Final = "tokens list"
SHOW: Final = "tokens show"
PURGE: Final = "tokens purge"
NOBODY: Final = "no registration has this id, and no device this fingerprint"
_SLICE: Final = 1000  # tokens that are looked at in one transaction
_LOOK: Final = 500  # the same, for an operator to see
_MOST: Final = 100  # registrations in an answer
_PATIENCE: Final = 5.0  # seconds after which an answer comes with what was found
_AT_ONCE: Final = 100  # that are deleted together
_DAY: Final = 24 * 3600


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
    with asked_of_the_store():
        return {"tokens": await invalidate(store, status, reason)}


# --- which there are


class Chosen(NamedTuple):
    """Which registrations are meant; None: it does not matter. `silent_for`: seconds without a command, at least."""

    status: str | None = None
    provider: Provider | None = None
    silent_for: float | None = None

    def has(self, r: Registered, now: float) -> bool:
        """Whether one is among them."""
        silent = self.silent_for is None or now - r.active_at >= self.silent_for
        return silent and self.status in {None, r.status} and self.provider in {None, r.provider}


async def page(store: Store, chosen: Chosen, after: str | None = None, limit: int = _MOST) -> dict[str, Any]:
    """`tokens`: some of those that are meant, behind a cursor; `next`: where the next ones begin, None: there are none.

    Raises StoreError.
    """
    found: list[Registered] = []
    ends_at = time.monotonic() + _PATIENCE
    limit = min(limit, _MOST)
    while len(found) < limit:
        some, after = await store.inspection.tokens(after, limit - len(found))  # none is found that has no room
        found += [r for r in some if chosen.has(r, time.time())]
        if after is None or time.monotonic() >= ends_at:
            break
    return {"tokens": [told(r) for r in found], "next": after}


async def show(store: Store, what: str) -> dict[str, Any]:
    """`what`: a registration's id (base64url), or a device's fingerprint: `tokens`, each with `statuses`, how many of
    its subscriptions have which. Raises AdminError, StoreError.
    """
    found = await _find(store, what)
    if not found:
        raise AdminError(NOBODY)
    return {"tokens": [{**told(r), "statuses": dict(await store.inspection.statuses(r.ref))} for r in found[:_MOST]]}


async def _find(store: Store, what: str) -> list[Registered]:
    """Of an id, by way of its device's fingerprint: that finds it where its slice is not known."""
    fingerprint, token_id = what, parse_id(what)
    if token_id is not None:
        token = await store.find_token(token_id)
        device = None if token is None else await store.device_of(token.ref)
        if device is None:
            return []
        fingerprint = device.fingerprint
    elif not FINGERPRINT.fullmatch(what):
        return []
    found: list[Registered] = []
    after: str | None = None
    while True:
        some, after = await store.inspection.tokens(after, _LOOK, fingerprint=fingerprint)
        found += [r for r in some if token_id is None or r.token_id == token_id]
        if after is None:
            return found


def told(r: Registered) -> dict[str, Any]:
    """As operators are told of it; times are Unix seconds."""
    return {
        "fingerprint": r.fingerprint,
        "provider": r.provider.value,
        "status": r.status,
        "reason": r.reason.value if r.reason else "",
        "registered_at": r.registered_at,
        "active_at": r.active_at,
        "period": r.period,
        "subscriptions": r.subscriptions,
        "last_push": told_push(r.last_push),
    }


def told_push(last: LastPush | None) -> dict[str, Any] | None:
    """The last push of a token."""
    if last is None:
        return None
    return {"push": push_uuid(last.push_id), "at": last.at, "outcome": last.outcome, "reason": last.reason}


# --- those that go


async def purge(store: Store, chosen: Chosen, *, delete: bool, after: str | None = None) -> dict[str, Any]:
    """Delete those that are meant, behind a cursor, or count them: `tokens` and `subscriptions`, how many that is;
    `next`: where to go on, None: it is done. Raises StoreError.
    """
    assert chosen.status is not None
    count = subscriptions = 0
    ends_at = time.monotonic() + _PATIENCE
    while True:
        some, after = await store.inspection.tokens(after, _LOOK)
        meant = [r for r in some if chosen.has(r, time.time())]
        for first in range(0, len(meant), _AT_ONCE):
            gone = meant[first : first + _AT_ONCE]
            if delete:
                gone = [r for r in gone if await _is_as_seen(store, r)]
                await asyncio.gather(*(store.delete_token(r.ref) for r in gone))
            count, subscriptions = count + len(gone), subscriptions + sum(r.subscriptions for r in gone)
        if after is None or time.monotonic() >= ends_at:
            break
    if delete and count:
        text = "%d tokens that were %s are deleted: an operator asked for it"
        events.tell(Event.TOKENS_PURGED, text, count, chosen.status, count=count, status=chosen.status)
    return {"tokens": count, "subscriptions": subscriptions, "next": after}


async def _is_as_seen(store: Store, r: Registered) -> bool:
    """Its app may have come back this moment."""
    if r.status == DAMAGED:
        return True
    try:
        token = await store.find_token(r.token_id)
    except DamagedRecordError:
        return False
    return token is not None and (token.status, token.active_at) == (r.status, r.active_at)


# --- as the admin socket is asked


def chosen_of(request: Mapping[str, Any]) -> Chosen:
    """`status`, `provider`, `days` without a command; each may be missing. Raises AdminError."""
    status, provider, days = (request.get(name) for name in ("status", "provider", "days"))
    try:
        if status is not None and status != DAMAGED:
            status = TokenStatus(status).value
        provider = None if provider is None else Provider(provider)
    except ValueError:
        raise AdminError("no such status, or no such provider") from None
    if days is not None and not (isinstance(days, int | float) and days >= 0):
        raise AdminError("days: must be a number from 0 on")
    return Chosen(status, provider, None if days is None else days * _DAY)


async def on_list(store: Store, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"command": "tokens list", "status": …, "provider": …, "limit": …, "after": …}`: see `page`."""
    limit = request.get("limit", _MOST)
    if not isinstance(limit, int) or limit < 1:
        raise AdminError("limit: must be a number from 1 on")
    return await _done(lambda after: page(store, chosen_of(request), after, limit), request)


async def on_show(store: Store, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"command": "tokens show", "what": …}`: see `show`."""
    what = request.get("what")
    if not isinstance(what, str):
        raise AdminError("no token or fingerprint was named")
    return await _done(lambda _: show(store, what), request)


async def on_purge(store: Store, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"command": "tokens purge", "status": …, "days": …, "delete": …, "after": …}`: see `purge`."""
    chosen, delete = chosen_of(request), request.get("delete")
    if chosen.status is None or chosen.silent_for is None or not isinstance(delete, bool):
        raise AdminError("status, days and delete are missing")
    return await _done(lambda after: purge(store, chosen, delete=delete, after=after), request)


async def _done(what: Callable[[str | None], Any], request: Mapping[str, Any]) -> Mapping[str, Any]:
    after = after_of(request)
    with asked_of_the_store():
        found: Mapping[str, Any] = await what(after)
    return found
