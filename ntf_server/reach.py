"""Whether a host can be reached: its name, TCP and TLS, each with its own words for what is in the way. Nothing is
asked of who answers there.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import pycurl

from ntf_server.observe.moments import day_of
from ntf_server.push.exchange import Endpoint, HttpFailure
from ntf_server.push.names import Addresses, Resolver
from smp_bridge.network import contains

_EACH: Final = 5.0  # seconds for one address
_TURNS: Final = 3  # of the loop, in which an aborted connection is closed
_MOST: Final = 4  # addresses of a host that are tried
_LONGEST: Final = 60  # characters of what OpenSSL says
_NO_WAY: Final = "does a firewall, or the lack of a route, keep this machine from it?"


class UnreachableError(Exception):
    """`step`: name, connection or TLS; its text says what is in the way, `cure` what to do."""

    def __init__(self, step: str, what: str, cure: str) -> None:
        super().__init__(what)
        self.step = step
        self.cure = cure


@dataclass(frozen=True, slots=True)
class Reached:
    """`address`: IP and port; `tls`, `alpn`: as agreed, empty if not known; `not_after`: of the peer's certificate,
    Unix seconds; `seconds`: that TCP and TLS took.
    """

    address: str
    tls: str
    alpn: str
    not_after: float | None
    seconds: float

    def __str__(self) -> str:
        agreed = ", ".join(filter(None, (self.tls, {"h2": "HTTP/2", "http/1.1": "HTTP/1.1"}.get(self.alpn, self.alpn))))
        end = f", certificate good until {day_of(self.not_after)}" if self.not_after else ""
        return f"{self.address}: {agreed}{end}, in {self.seconds * 1000:.0f} ms"


def host_of(endpoint: Endpoint) -> tuple[str, int]:
    """(host, port)"""
    parts = urlsplit(endpoint.url)
    return parts.hostname or "", parts.port or 443


async def resolve(host: str, resolver: Resolver) -> Addresses:
    """Where a name leads, by c-ares as for pushes. Raises UnreachableError."""
    found = resolver.known(host)
    if found is None:
        answer: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
        resolver.resolve(host, answer.set_result, strangers=False)
        found = await answer
    if not found.all:
        cure = "is it spelled right, and does this machine reach its DNS server? [transport] name_servers says which"
        raise UnreachableError("name", f"{host}: no address is known for it, or no DNS server answers", cure)
    return found


def usable(endpoint: Endpoint, found: Addresses) -> tuple[str, ...]:
    """Addresses that pushes may go to. Raises UnreachableError."""
    host, _ = host_of(endpoint)
    good = found.all
    if endpoint.public_only:
        good = tuple(a for a in found.all if a in found.public or contains(endpoint.allowed, a))
    if not good:
        what = f"{host}: leads to {', '.join(found.all[:_MOST])}, which is not on the public internet, or is our own"
        raise UnreachableError("name", what, "if it is yours, put it into [web_push] allow_hosts")
    return good


def tls_context(endpoint: Endpoint) -> ssl.SSLContext:
    """As libcurl is told to check the peer."""
    context = ssl.create_default_context(cafile=endpoint.ca_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # which Python 3.13 begins with, and libcurl does not ask for
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"] if endpoint.http2_only else ["h2", "http/1.1"])
    return context


async def connect(addresses: Sequence[str], port: int, context: ssl.SSLContext, name: str) -> Reached:
    """TCP and TLS with the first address that answers; `name`: what the certificate has to be for, empty if nobody
    asks. Raises UnreachableError, of the last one.
    """
    error = UnreachableError("connection", "there is no address", "")
    for address in addresses[:_MOST]:
        where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        began = time.monotonic()
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(_EACH):
                await asyncio.get_running_loop().sock_connect(sock, (address, port))
        except OSError as e:  # TimeoutError among them
            sock.close()
            what = os.strerror(e.errno) if e.errno else f"no answer within {_EACH:g} s"
            error = UnreachableError("connection", f"{where}: {what}", _NO_WAY)
            continue
        except BaseException:
            sock.close()
            raise
        try:
            return await shake_hands(sock, where, context, name, began)
        except UnreachableError as e:
            error = e
    raise error


async def shake_hands(sock: socket.socket, where: str, context: ssl.SSLContext, name: str, began: float) -> Reached:
    """TLS over a connected socket, which is closed then. `where`: its peer, in words; `began`: monotonic seconds, when
    it was to be connected. Raises UnreachableError.
    """
    cure = "is it a TLS server, and is there nothing between that takes the connection?"
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_EACH):
            _, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname=name)
        return _reached(where, writer, began)
    except ssl.SSLCertVerificationError as e:
        why = e.verify_message or "it does not verify"
        cure = "is ca_file the CA of that host? Something between may open TLS; is the clock of this machine right?"
        raise UnreachableError("TLS", f"{where}: its certificate is not trusted: {why}", cure) from None
    except ssl.SSLError as e:
        raise UnreachableError("TLS", f"{where}: {(e.reason or 'TLS failed')[:_LONGEST]}", cure) from None
    except TimeoutError:
        raise UnreachableError("TLS", f"{where}: no answer within {_EACH:g} s", cure) from None
    except OSError:
        raise UnreachableError("TLS", f"{where}: closed the connection", cure) from None
    finally:
        if writer is not None:
            writer.transport.abort()
        for _ in range(_TURNS):
            await asyncio.sleep(0)


def _reached(where: str, writer: asyncio.StreamWriter, began: float) -> Reached:
    tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
    certificate = tls.getpeercert() or {}
    end = certificate.get("notAfter")
    not_after = float(ssl.cert_time_to_seconds(end)) if isinstance(end, str) else None
    alpn = tls.selected_alpn_protocol() or ""
    return Reached(where, tls.version() or "", alpn, not_after, time.monotonic() - began)


async def connect_through(endpoint: Endpoint) -> Reached:
    """The same by way of the endpoint's proxy, which resolves the name. Raises UnreachableError."""
    began = time.monotonic()
    code, told = await asyncio.to_thread(_try_proxy, endpoint)
    if code:
        failure = HttpFailure(code, timeout=code == pycurl.E_OPERATION_TIMEDOUT)
        cure = "is the proxy up, does it let this machine through, and are its user and password right?"
        raise UnreachableError("connection", f"{endpoint.url} by way of the proxy: {failure}", cure)
    return Reached("by way of the proxy", told, "", None, time.monotonic() - began)


def _try_proxy(e: Endpoint) -> tuple[int, str]:
    """(libcurl's error or 0, what TLS was agreed if it can be told)."""
    c = pycurl.Curl()
    told: list[str] = []

    def listen(kind: int, data: bytes) -> None:
        if kind == pycurl.INFOTYPE_TEXT and data.startswith(b"SSL connection using "):
            told.append(data.decode("latin-1").split()[3])

    try:
        c.setopt(pycurl.URL, e.url)
        c.setopt(pycurl.CONNECT_ONLY, 1)
        c.setopt(pycurl.NOSIGNAL, 1)
        c.setopt(pycurl.NOPROXY, "")
        c.setopt(pycurl.PROXY, e.proxy)
        c.setopt(pycurl.CAINFO, e.ca_file)
        c.setopt(pycurl.PROXY_CAINFO, e.ca_file)
        c.setopt(pycurl.SSLVERSION, pycurl.SSLVERSION_TLSv1_2)
        c.setopt(pycurl.TIMEOUT_MS, round(e.connect_timeout * 1000))
        c.setopt(pycurl.VERBOSE, 1)
        c.setopt(pycurl.DEBUGFUNCTION, listen)
        c.perform()
    except pycurl.error as error:
        return int(error.args[0]), ""
    finally:
        with contextlib.suppress(pycurl.error):
            c.close()
    return 0, told[-1] if told else "TLS"
