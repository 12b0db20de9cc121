"""Who may look at the live page, and what a browser may do with it. No I/O."""

import base64
import binascii
import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

from ntf_server.config.page import Page, is_loopback

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_OWN_SITES: Final = ("same-origin", "none")  # Fetch Metadata: asked by the page itself, or by a person


class Refusal(NamedTuple):
    """Why not; a line."""

    status: HTTPStatus
    text: str
    headers: Mapping[str, str] = {}


_ASK: Final = Refusal(
    HTTPStatus.UNAUTHORIZED,
    "the page's token is needed, as the password; any name will do",
    {"WWW-Authenticate": 'Basic realm="ntf-relay", charset="UTF-8"'},
)
_MISDIRECTED: Final = Refusal(
    HTTPStatus.MISDIRECTED_REQUEST,
    "asked by a name that is not this machine's own; open it as localhost, or put the name into [admin] hosts",
)
_FOREIGN: Final = Refusal(HTTPStatus.FORBIDDEN, "another site asks for this")


def refusal(page: Page, headers: Mapping[str, str]) -> Refusal | None:
    """Why somebody who sends these headers gets nothing; None: he may look. `headers`: names in any case."""
    is_link = headers.get("Sec-Fetch-Mode") == "navigate"  # that a person follows
    if headers.get("Sec-Fetch-Site", "none") not in _OWN_SITES and not is_link:
        return _FOREIGN
    if page.token is not None:
        return None if _knows(page.token, headers.get("Authorization", "")) else _ASK
    if page.socket is None and not _is_named(page, headers.get("Host", "")):
        return _MISDIRECTED  # a name of a stranger's that leads to loopback (DNS rebinding)
    return None


def _knows(digest: bytes, authorization: str) -> bool:
    """Whether it brings the token: as the password of Basic (RFC 7617), or as Bearer's (RFC 6750)."""
    scheme, _, value = authorization.partition(" ")
    token = value.strip().encode("utf-8", "replace")
    if scheme.lower() == "basic":
        try:
            token = base64.b64decode(token, validate=True).partition(b":")[2]
        except binascii.Error:
            token = b""
    elif scheme.lower() != "bearer":
        token = b""
    return hmac.compare_digest(hashlib.sha256(token).digest(), digest)


def _is_named(page: Page, host: str) -> bool:
    """Whether a header `Host` names this machine, or what the operator calls it. The port may be a tunnel's."""
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    name = name.lower().rstrip(".")
    return is_loopback(name) or name in page.hosts or _is_address(name, page.host)


def _is_address(name: str, bound: str | None) -> bool:
    try:
        return bound is not None and ipaddress.ip_address(name) == ipaddress.ip_address(bound)
    except ValueError:
        return False
