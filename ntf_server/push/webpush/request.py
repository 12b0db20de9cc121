"""A claim as a request to a push service (RFC 8030)."""

from collections.abc import Mapping
from typing import Final

import msgspec

from ntf_server.push.exchange import Endpoint, HttpRequest
from ntf_server.push.payload import notification_data
from ntf_server.push.webpush.encryption import encrypt
from ntf_server.push.webpush.subscription import WebPushSubscription
from ntf_server.store.records import Claim, Entry, PushKind

_MAX_TTL: Final = 28 * 24 * 3600  # seconds; push services shorten more, or refuse it
_CHECK: Final = b'{"checkMessages":true}'


def request(
    claim: Claim,
    subscription: WebPushSubscription,
    endpoint: Endpoint,
    *,
    ttl: Mapping[PushKind, int],
    authorization: str,
    now: int,
) -> tuple[HttpRequest, tuple[Entry, ...]]:
    """(the request, entries that it holds). `authorization`: of VAPID. Raises ValueError if an entry does not fit."""
    plain, held = _plain(claim)
    left = min(max(0, claim.since + ttl[claim.kind] - now), _MAX_TTL)
    headers = [
        f"authorization: {authorization}",
        "content-encoding: aes128gcm",
        "content-type: application/octet-stream",
        f"ttl: {left}",
        f"urgency: {'low' if claim.kind is PushKind.CHECK else 'high'}",
    ]
    if claim.kind is not PushKind.MESSAGES:  # a topic replaces what waits under it: never messages
        headers.append(f"topic: {claim.kind.name.lower()}")
    return HttpRequest(endpoint, subscription.path, headers, encrypt(plain, subscription)), held


def _plain(claim: Claim) -> tuple[bytes, tuple[Entry, ...]]:
    if claim.kind is PushKind.CHECK:
        return _CHECK, ()
    data, held = notification_data(claim)
    return msgspec.json.encode(data), held
