"""What an operator sees of SMP servers and of subscriptions: what the store wants, and what this node has."""

import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from ntf_server.admin.ids import parse_id
from ntf_server.admin.socket import AdminError, after_of, asked_of_the_store
from ntf_server.smp.looks import ServerLook
from ntf_server.store.contract import Store
from ntf_server.store.records import WANTED, Subscription
from smp_bridge.ntf import Sub

COUNT: Final = "servers count"  # the admin socket's commands
LOOK: Final = "servers look"
SHOW: Final = "subs show"
UNKNOWN: Final = "no subscription has this id"
_SLICE: Final = 100  # subscriptions that are counted at once, so that no answer is too long
_ENOUGH: Final = 60  # servers in an answer
_PATIENCE: Final = 5.0  # seconds after which an answer comes with what was counted


class Running(Protocol):
    """What a relay knows of its SMP servers."""

    def looks(self, limit: int, after: str = "") -> list[ServerLook]:
        """So many, in the order of their addresses as text, behind one of these."""
        ...

    def status(self, s: Subscription) -> Sub:
        """What SCHK answers."""
        ...


async def count(store: Store, after: str | None = None) -> dict[str, Any]:
    """`servers`: some subscriptions behind a cursor, counted: of servers by their addresses, `statuses`, how many have
    which, and `associated`, how many our service has; `next`: where to go on, None: that was all. One server may be in
    several answers. Raises StoreError.
    """
    found: dict[str, dict[str, Any]] = {}
    ends_at = time.monotonic() + _PATIENCE
    while True:
        some, after = await store.inspection.subscriptions(after, _SLICE)
        for one in some:
            counted = found.setdefault(str(one.server.plain), nothing())
            add(counted, {"statuses": one.statuses, "associated": one.associated})
        if after is None or len(found) >= _ENOUGH or time.monotonic() >= ends_at:
            return {"servers": found, "next": after}


def nothing() -> dict[str, Any]:
    """Of a server of which nothing was counted."""
    return {"statuses": {}, "associated": 0}


def add(counted: dict[str, Any], more: Mapping[str, Any]) -> None:
    """What was counted of one server elsewhere."""
    for status, number in more["statuses"].items():
        counted["statuses"][status] = counted["statuses"].get(status, 0) + number
    counted["associated"] += more["associated"]


def wanted(statuses: Mapping[str, int]) -> int:
    """How many of these should be active."""
    return sum(statuses.get(status.value, 0) for status in WANTED)


def look(running: Running, after: str | None = None) -> dict[str, Any]:
    """`servers`: how some of this node's are, behind one; `next`: the last of these, None: there are no more."""
    some = {one.name: _told(one) for one in running.looks(_ENOUGH, after or "")}
    return {"servers": some, "next": next(reversed(some)) if len(some) == _ENOUGH else None}


def _told(one: ServerLook) -> dict[str, Any]:
    """Times are seconds from now, or ago."""
    way = one.way
    return {
        "own": one.own,
        "proven": way.is_proven,
        "connected": way.is_connected,
        "for": way.seconds,
        "service": one.service,
        "active": one.active,
        "pending": one.pending,
        "complete": one.complete,
        "failure": way.failure.value if way.failure else "",
        "reason": way.reason,
        "failed_ago": way.failed_ago,
        "retry_in": way.retry_in,
    }


async def show(store: Store, running: Running | None, what: str) -> dict[str, Any]:
    """A subscription by its id (base64url): its server, `status` and `error` as they are kept, `told`: what its app is
    told, None while no server runs; `fingerprint` and so on of its device. Raises AdminError, StoreError.
    """
    subscription_id = parse_id(what)
    found = None if subscription_id is None else await store.find_subscription(subscription_id)
    device = None if found is None else await store.device_of(found[0].ref)
    if found is None or device is None:
        raise AdminError(UNKNOWN)
    token, subscription = found
    return {
        "server": str(subscription.server.plain),
        "status": subscription.status.value,
        "error": subscription.error,
        "told": None if running is None else running.status(subscription).status.value,
        "associated": subscription.associated,
        "fingerprint": device.fingerprint,
        "provider": device.provider.value,
        "token": token.status.value,
    }


async def on_count(store: Store, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"command": "servers count", "after": …}`: see `count`. Raises AdminError."""
    with asked_of_the_store():
        return await count(store, after_of(request))


async def on_look(running: Running, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"command": "servers look", "after": …}`: see `look`. Raises AdminError."""
    return look(running, after_of(request))


async def on_show(store: Store, running: Running, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"command": "subs show", "what": …}`: see `show`. Raises AdminError."""
    what = request.get("what")
    if not isinstance(what, str):
        raise AdminError("no subscription was named")
    with asked_of_the_store():
        return await show(store, running, what)
