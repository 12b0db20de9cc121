"""A claim as a request to FCM (Firebase, "Send messages with the HTTP v1 API")."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from ntf_server.push.exchange import Endpoint, HttpRequest
from ntf_server.push.payload import notification_data
from ntf_server.store.records import Claim, Entry, PushKind
from smp_bridge.ntf import DeviceToken

_MAX_TTL: Final = 28 * 24 * 3600  # seconds; FCM refuses more


def is_device_token(device: DeviceToken) -> bool:
    """Whether a request can be made of it."""
    return bool(device.token) and device.token.isascii()


def path(project_id: str) -> str:
    """Of all requests."""
    return f"/v1/projects/{project_id}/messages:send"


def request(
    claim: Claim, endpoint: Endpoint, path: str, *, ttl: Mapping[PushKind, int], token: str, now: int
) -> tuple[HttpRequest, tuple[Entry, ...]]:
    """(the request, entries that it holds). `token`: the access token. Raises ValueError if an entry does not fit."""
    data, held = _data(claim)
    left = min(max(0, claim.since + ttl[claim.kind] - now), _MAX_TTL)
    android: dict[str, Any] = {
        "priority": "NORMAL" if claim.kind is PushKind.CHECK else "HIGH",
        "ttl": f"{left}s",
    }
    if claim.kind is not PushKind.MESSAGES:
        android["collapse_key"] = claim.kind.name.lower()
    message = {"token": claim.device.token.decode("ascii"), "data": data, "android": android}
    headers = (f"authorization: Bearer {token}", "content-type: application/json")
    return HttpRequest(endpoint, path, headers, msgspec.json.encode({"message": message})), held


def only_validated(made: HttpRequest) -> HttpRequest:
    """The same request, that FCM judges and does not pass on (`validate_only`)."""
    return replace(made, body=msgspec.json.encode({"validate_only": True, **msgspec.json.decode(made.body)}))


def _data(claim: Claim) -> tuple[dict[str, str], tuple[Entry, ...]]:
    """All values of FCM's data are strings."""
    return ({"checkMessages": "true"}, ()) if claim.kind is PushKind.CHECK else notification_data(claim)
