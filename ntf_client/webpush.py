"""A Web Push subscription as a device token, and as text (wire.md, section 8). No I/O."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import SplitResult, quote, urlsplit

from smp_bridge.address import parse_host
from smp_bridge.encoding import ParseError, Reader, b64url, short, un_b64url
from smp_bridge.ntf import DeviceToken, Provider

_AUTH_SIZE: Final = 16
_KEY_SIZE: Final = 65
_UNCOMPRESSED: Final = 4
_DEFAULT_PORT: Final = 443
_PREFIX: Final = "webpush"
_HOST: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")  # the relay takes no other name
_IN_PATHS: Final = "!$%&'()*+,-./:;=?@_~"  # besides letters and digits; all else is percent-encoded
# IDNA's two versions make different hosts of these: a wrong guess would push to somebody else's.
_AMBIGUOUS: Final = frozenset("\u00df\u1e9e\u03c2\u200c\u200d")


def subscription_token(subscription: bytes | str | Mapping[str, Any]) -> DeviceToken:
    """From what `PushSubscription.toJSON()` gives, or UnifiedPush: `{"endpoint": …, "keys": {"p256dh": …, "auth": …}}`.

    Or from its text form, `webpush ENDPOINT AUTH P256DH`, see `subscription_text`. An endpoint that is not ASCII is
    brought to it (RFC 3987, section 3.1). Equal subscriptions give equal tokens. Raises ParseError, which shows no part
    of the subscription.
    """
    endpoint, p256dh, auth = _parts(subscription)
    key, secret = un_b64url(p256dh), un_b64url(auth)
    if len(key) != _KEY_SIZE or key[0] != _UNCOMPRESSED:
        raise ParseError("p256dh is not an uncompressed P-256 key (65 bytes)")
    if len(secret) != _AUTH_SIZE:
        raise ParseError("auth has 16 bytes")
    return DeviceToken(Provider.WEB_PUSH, _location(endpoint) + short(secret) + short(key))


def subscription_text(token: DeviceToken) -> str:
    """`webpush https://HOST[:PORT]PATH AUTH P256DH`, the last two as base64url. Whoever has it can push to the device.

    Raises ParseError if it is no token of Web Push.
    """
    if token.provider is not Provider.WEB_PUSH:
        raise ParseError("not a token of Web Push")
    r = Reader(token.token)
    host, port, path, auth, key = (r.short() for _ in range(5))
    r.end()
    try:
        name, number, location = host.decode("ascii"), port.decode("ascii"), path.decode("ascii")
    except UnicodeDecodeError:
        raise ParseError("not a token of Web Push") from None
    authority = (f"[{name}]" if ":" in name else name) + (f":{number}" if number else "")
    return f"{_PREFIX} https://{authority}{location} {b64url(auth)} {b64url(key)}"


def _parts(subscription: bytes | str | Mapping[str, Any]) -> tuple[str, str, str]:
    """(endpoint, p256dh, auth)"""
    try:
        if isinstance(subscription, Mapping):
            data = subscription
        else:
            text = subscription if isinstance(subscription, str) else subscription.decode()
            if text.split(maxsplit=1)[:1] == [_PREFIX]:
                _, endpoint, auth, p256dh = text.split()
                return endpoint, p256dh, auth
            data = json.loads(text)
        endpoint, keys = data["endpoint"], data["keys"]
        p256dh, auth = keys["p256dh"], keys["auth"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ParseError(
            "neither the JSON of a push subscription (endpoint, keys.p256dh, keys.auth)"
            " nor its text form, webpush ENDPOINT AUTH P256DH"
        ) from None
    if not all(isinstance(value, str) for value in (endpoint, p256dh, auth)):
        raise ParseError("endpoint, p256dh and auth of a push subscription are texts")
    return endpoint, p256dh, auth


def _location(endpoint: str) -> bytes:
    """Host, port (empty for 443) and path, which begins with a slash and includes a query."""
    try:
        url = urlsplit(endpoint)
        host, port = parse_host(_ascii_host(url.hostname or "")), url.port
    except _AmbiguousHostError:
        raise ParseError("the endpoint's host is not ASCII, and can be read in two ways: give it as xn--…") from None
    except ValueError:  # ParseError is one
        raise ParseError("the endpoint is not an https URL") from None
    if not _is_plain(endpoint, url) or port == 0 or not (":" in host or _HOST.fullmatch(host)):
        raise ParseError("the endpoint is not an https URL")
    path = quote(endpoint[len("https://") + len(url.netloc) :], safe=_IN_PATHS)
    path = path if path.startswith("/") else f"/{path}"
    if len(host) > 255 or len(path) > 255:
        raise ParseError("the endpoint's host and path have 255 bytes each at most")
    port_text = "" if port in (None, _DEFAULT_PORT) else str(port)
    return short(host.encode()) + short(port_text.encode()) + short(path.encode())


class _AmbiguousHostError(ValueError):
    pass


def _ascii_host(host: str) -> str:
    """A host name by IDNA. Raises ValueError."""
    if host.isascii():
        return host
    if _AMBIGUOUS & set(host):
        raise _AmbiguousHostError
    return host.encode("idna").decode()


def _is_plain(endpoint: str, url: SplitResult) -> bool:
    """Whether nothing in it would be lost on the wire."""
    visible = endpoint.isprintable() and " " not in endpoint
    return url.scheme == "https" and "@" not in url.netloc and "#" not in endpoint and visible
