"""What became of a device's pushes: `ntf-server trace`."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from ntf_server.admin.ids import FINGERPRINT, parse_id
from ntf_server.admin.socket import AdminError, asked_of_the_store
from ntf_server.admin.tokens import told_push
from ntf_server.store.contract import Queues, Tokens
from ntf_server.store.records import Subscription, Token

TRACE: Final = "trace"  # the admin socket's command
_MOST: Final = 100  # pushes in an answer
UNKNOWN: Final = "no token and no subscription has this id, and no push to a device of this fingerprint is known"


class Store(Tokens, Queues, Protocol):
    """What is asked of it."""


Trail = Callable[[str, int], tuple[list[dict[str, Any]], int]]  # see `Trail.of`, and how many were added ever


async def trace(store: Store, what: str, pushes: Trail, after: int = 0) -> dict[str, Any]:
    """`what`: a token's id, a subscription's (base64url, as commands have them), or a device's fingerprint.

    `token`, `subscription`: what the store has of them, or None; `fingerprint`; `pushes`: of those that ended behind
    the first `after` ones, the last 100, oldest first; `next`: `after` of the next call. Raises AdminError.
    """
    with asked_of_the_store():
        token, subscription = await _find(store, what)
        device = None if token is None else await store.device_of(token.ref)
        last = None if token is None else await store.last_push(token.ref)
    fingerprint = device.fingerprint if device else what if FINGERPRINT.fullmatch(what) else None
    found, count = pushes(fingerprint, after) if fingerprint else ([], after)
    if token is None and not found and not after:
        raise AdminError(UNKNOWN)
    told = None
    if token is not None and device is not None:
        told = {
            "provider": device.provider.value,
            "status": token.status.value,
            "reason": token.reason.value if token.reason else "",
            "period": token.period,
            "active_at": token.active_at,
            "last_push": told_push(last),
        }
    return {
        "fingerprint": fingerprint,
        "token": told,
        "subscription": subscription and _told(subscription),
        "pushes": found[-_MOST:],
        "next": count,
    }


async def on_trace(store: Store, pushes: Trail, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"command": "trace", "what": …, "after": …}`: see `trace`. Raises AdminError."""
    what, after = request.get("what"), request.get("after", 0)
    if not isinstance(what, str) or not isinstance(after, int):
        raise AdminError("no token, subscription or fingerprint was named")
    return await trace(store, what, pushes, after)


async def _find(store: Store, what: str) -> tuple[Token | None, Subscription | None]:
    if (found := parse_id(what)) is None:
        return None, None
    if (token := await store.find_token(found)) is not None:
        return token, None
    return await store.find_subscription(found) or (None, None)


def _told(subscription: Subscription) -> dict[str, Any]:
    return {"server": subscription.server.hosts[0], "status": subscription.status.value}
