"""A browser's Web Push subscription as a device token (wire.md, section 8). No I/O."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from smp_bridge.address import parse_host
from smp_bridge.encoding import ParseError, short, un_b64url
from smp_bridge.ntf import DeviceToken, Provider

_AUTH_SIZE: Final = 16
_KEY_SIZE: Final = 65
_UNCOMPRESSED: Final = 4
_DEFAULT_PORT: Final = 443
_URL: Final = re.compile(r"[!-~]+")


def subscription_token(subscription: bytes | str | Mapping[str, Any]) -> DeviceToken:
    """From what `PushSubscription.toJSON()` gives, or UnifiedPush: `{"endpoint": …, "keys": {"p256dh": …, "auth": …}}`.

    Equal subscriptions give equal tokens. Raises ParseError, which shows no part of the subscription.
    """
    try:
        data = subscription if isinstance(subscription, Mapping) else json.loads(subscription)
        endpoint, keys = data["endpoint"], data["keys"]
        p256dh, auth = keys["p256dh"], keys["auth"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ParseError("not the JSON of a push subscription: endpoint, keys.p256dh, keys.auth") from None
    if not all(isinstance(value, str) for value in (endpoint, p256dh, auth)):
        raise ParseError("endpoint, p256dh and auth of a push subscription are texts")
    key, secret = un_b64url(p256dh), un_b64url(auth)
    if len(key) != _KEY_SIZE or key[0] != _UNCOMPRESSED:
        raise ParseError("p256dh is not an uncompressed P-256 key (65 bytes)")
    if len(secret) != _AUTH_SIZE:
        raise ParseError("auth has 16 bytes")
    return DeviceToken(Provider.WEB_PUSH, _location(endpoint) + short(secret) + short(key))


def _location(endpoint: str) -> bytes:
    """Host, port (empty for 443) and path, which begins with a slash and includes a query."""
    try:
        url = urlsplit(endpoint)
        host, port = parse_host(url.hostname or ""), url.port
    except ValueError:  # ParseError is one
        raise ParseError("the endpoint is not an https URL") from None
    if not _is_plain(endpoint, url) or port == 0:
        raise ParseError("the endpoint is not an https URL")
    path = endpoint[len("https://") + len(url.netloc) :]
    path = path if path.startswith("/") else f"/{path}"
    if len(host) > 255 or len(path) > 255:
        raise ParseError("the endpoint's host and path have 255 bytes each at most")
    port_text = "" if port in (None, _DEFAULT_PORT) else str(port)
    return short(host.encode()) + short(port_text.encode()) + short(path.encode())


def _is_plain(endpoint: str, url: SplitResult) -> bool:
    """Whether nothing in it would be lost on the wire."""
    return url.scheme == "https" and "@" not in url.netloc and "#" not in endpoint and bool(_URL.fullmatch(endpoint))
