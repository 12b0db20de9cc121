"""A claim as a request to Apple (wire.md, section 8; Apple, "Sending notification requests to APNs")."""

import urllib.parse
from collections.abc import Mapping
from typing import Final

from ntf_server.push.exchange import Endpoint, HttpRequest
from ntf_server.push.payload import apns_body
from ntf_server.store.records import Claim, Entry, PushKind, push_uuid
from smp_bridge.ntf import DeviceToken

_NO_SEGMENT: Final = frozenset([b"", b".", b".."])  # device tokens that would make another path
_BACKGROUND: Final = ("apns-push-type: background", "apns-priority: 5")
_ALERT: Final = ("apns-push-type: alert", "apns-priority: 10")


def is_device_token(device: DeviceToken) -> bool:
    """Whether a request can be made of it."""
    return device.token not in _NO_SEGMENT


def request(
    claim: Claim, nonce: bytes, endpoint: Endpoint, *, topic: str, ttl: Mapping[PushKind, int], jwt: str
) -> tuple[HttpRequest, tuple[Entry, ...]]:
    """(the request, entries that it holds). `nonce` as in `apns_body`; `jwt` empty: a certificate authenticates.

    The id of the push is the same over all tries. Raises ValueError if a single entry does not fit.
    """
    body, held = apns_body(claim, nonce)
    token = claim.device.token
    device_token = token.decode() if token.isalnum() else urllib.parse.quote(token, safe="")
    headers = [
        f"apns-topic: {topic}",
        f"apns-id: {push_uuid(claim.push_id)}",
        f"apns-expiration: {claim.since + ttl[claim.kind]}",
        "content-type: application/json",
    ]
    if jwt:
        headers.append(f"authorization: bearer {jwt}")
    if claim.kind is PushKind.MESSAGES:
        headers += _ALERT
    else:  # what waits on the device's way may be replaced: never messages
        headers += [*_BACKGROUND, f"apns-collapse-id: {claim.kind.name.lower()}"]
    return HttpRequest(endpoint, f"/3/device/{device_token}", headers, body), held
