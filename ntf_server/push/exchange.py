"""What is asked of the HTTP engine, and what it gives back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import pycurl

from ntf_server.store.records import Record
from smp_bridge.network import IPNetwork


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go and how.

    `ca_file`: PEM bundle to check the peer with; times in seconds; `http2_only`: speak HTTP/2 whatever ALPN says, else
    what ALPN says; `proxy`: `http://`, `https://`, `socks5://` or `socks5h://` URL, empty for none; `public_only`:
    refuse to connect to addresses that are not on the public internet, or are this machine's, looked at after the
    resolution (a proxy resolves and connects by itself), but for those in the networks of `allowed`; `client_cert`,
    `client_key`: PEM to show to the peer; `streams`: requests that one connection is given before another is opened,
    up to `connections` of them; `ends`: words in the body of an error that say that the connection is over.
    """

    url: str
    ca_file: str
    connect_timeout: float = 10.0
    timeout: float = 30.0
    http2_only: bool = True
    proxy: str = field(default="", repr=False)
    public_only: bool = False
    allowed: tuple[IPNetwork, ...] = ()
    client_cert: bytes = field(default=b"", repr=False)
    client_key: bytes = field(default=b"", repr=False)
    streams: int = 1000
    connections: int = 2
    ends: tuple[bytes, ...] = ()


class HttpRequest(Record, frozen=True):
    """A POST; `path` is appended to the endpoint's URL, and is secret, since it may hold a device token.

    `dated`: the answer's `Date` is wanted; that takes more time.
    """

    endpoint: Endpoint
    path: str
    headers: Sequence[str]
    body: bytes
    dated: bool = False

    def __repr__(self) -> str:
        return f"HttpRequest(endpoint={self.endpoint!r})"


class HttpResponse(Record, frozen=True):
    """An answer. `retry_after`: seconds that `Retry-After` asks for (RFC 9110, section 10.2.3), None for none or 0.

    `date`: of the header `Date`, Unix seconds, if it was asked for. There are no other headers: libcurl would call for
    each, and wait for Python's lock in the middle of its work.
    """

    status: int
    body: bytes = b""
    retry_after: float | None = None
    date: float | None = None


class HttpFailure(Record, frozen=True):
    """No answer: libcurl's error number and its name. `timeout`: the deadline passed; `connected`: on a connection."""

    code: int
    timeout: bool
    connected: bool = True

    @property
    def unreachable(self) -> bool:
        """No connection to the peer could be made at all."""
        return self.code in _UNREACHABLE or (self.timeout and not self.connected)

    def __str__(self) -> str:
        return _NAMES.get(self.code, f"libcurl error {self.code}")


REFUSED_BY_PROXY: Final = 97  # CURLE_PROXY, which pycurl does not name
STREAM_RESET: Final = 92  # CURLE_HTTP2_STREAM, likewise
TOO_LARGE: Final = 100  # CURLE_TOO_LARGE, likewise

_NAMES: Final = {
    REFUSED_BY_PROXY: "refused by the proxy",
    pycurl.E_COULDNT_RESOLVE_PROXY: "proxy name not resolved",
    pycurl.E_SSL_CERTPROBLEM: "client certificate not usable",
    pycurl.E_BAD_FUNCTION_ARGUMENT: "client certificate not usable",  # its key is what is bad
    pycurl.E_URL_MALFORMAT: "URL or header not valid",
    pycurl.E_COULDNT_RESOLVE_HOST: "host name not resolved",
    pycurl.E_COULDNT_CONNECT: "connection refused",
    pycurl.E_OPERATION_TIMEDOUT: "timed out",
    pycurl.E_SSL_CONNECT_ERROR: "TLS handshake failed",
    pycurl.E_PEER_FAILED_VERIFICATION: "certificate not trusted",
    pycurl.E_SSL_CACERT_BADFILE: "CA file not readable",
    pycurl.E_HTTP2: "HTTP/2 error",
    STREAM_RESET: "HTTP/2 stream reset",
    pycurl.E_RECV_ERROR: "connection lost while receiving",
    pycurl.E_SEND_ERROR: "connection lost while sending",
    pycurl.E_GOT_NOTHING: "connection closed without an answer",
    pycurl.E_PARTIAL_FILE: "answer cut short",
    TOO_LARGE: "answer too large",
}

# With the connection. What went over one that had given answers is sent again over a new one: peers close those that
# they are done with, and may do so just then.
LOST: Final = frozenset([pycurl.E_HTTP2, pycurl.E_RECV_ERROR, pycurl.E_SEND_ERROR, pycurl.E_GOT_NOTHING])
_UNREACHABLE: Final = frozenset(
    [
        REFUSED_BY_PROXY,
        pycurl.E_COULDNT_RESOLVE_PROXY,
        pycurl.E_SSL_CERTPROBLEM,
        pycurl.E_BAD_FUNCTION_ARGUMENT,
        pycurl.E_COULDNT_RESOLVE_HOST,
        pycurl.E_COULDNT_CONNECT,
        pycurl.E_SSL_CONNECT_ERROR,
        pycurl.E_PEER_FAILED_VERIFICATION,
        pycurl.E_SSL_CACERT_BADFILE,
    ]
)

HttpResult: TypeAlias = HttpResponse | HttpFailure
OK: Final = HttpResponse(200)  # the one answer of this content, so that it is told by `is`
Done: TypeAlias = Callable[[HttpResult], None]
