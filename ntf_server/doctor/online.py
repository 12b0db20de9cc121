"""What has to be reached from here: push providers and SMP servers, and what their clocks say of this machine's.

Providers are asked for nothing: a request without credentials, which they refuse with the time. SMP servers are
connected to, no more.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Final

from ntf_server.config.files import Config
from ntf_server.findings import Finding, left_out, warning, well, wrong
from ntf_server.providers import apns_settings, fcm_settings
from ntf_server.push.exchange import Endpoint, HttpFailure, HttpRequest, HttpResult
from ntf_server.push.http import HttpEngine
from ntf_server.push.jose import generate_key
from ntf_server.push.names import Resolver
from ntf_server.push.words import SKEW, clock_words
from ntf_server.reach import (
    UnreachableError,
    connect,
    connect_through,
    host_of,
    resolve,
    shake_hands,
    tls_context,
    usable,
)
from smp_bridge.failure import ConnectError
from smp_bridge.names import Names
from smp_bridge.network import ResolveError, find_route, open_socket
from smp_bridge.ntf import Provider
from smp_bridge.tls import client_context

EACH: Final = 15.0  # seconds for one host
SMP_PORT: Final = 5223
_AT_ONCE: Final = 16
_MOST: Final = 100  # SMP servers
_WRONG_SKEW: Final = 300  # seconds that this machine's clock must not be off
_NAMES: Final = {Provider.APNS: "APNs", Provider.APNS_SANDBOX: "APNs sandbox", Provider.APNS_TEST: "APNs test"}

Look = Callable[[], Awaitable[Sequence[Finding]]]


async def online(config: Config, smp_port: int = SMP_PORT) -> list[Finding]:
    """All of it, each within `EACH` seconds, some at once. `smp_port`: of SMP servers."""
    resolver = Resolver(config.settings.transport.name_servers)
    engine = HttpEngine(streams=1, resolver=resolver)
    names = Names(config.settings.transport.name_servers)
    skews: list[tuple[str, float]] = []
    looks: list[tuple[str, Look]] = []
    try:
        if config.settings.transport.host:
            looks.append(("address", partial(_own_name, config.settings.transport.host, resolver)))
        for name, endpoint in _endpoints(config):
            looks.append((name, partial(_provider, name, endpoint, resolver, engine, skews)))
        hosts = _smp_hosts(config)
        looks += [("SMP server", partial(_smp_server, host, smp_port, config, names)) for host in hosts[:_MOST]]
        turns = asyncio.Semaphore(_AT_ONCE)
        found = await asyncio.gather(*(_within(name, look, turns) for name, look in looks))
        findings = [finding for some in found for finding in some]
        if len(hosts) > _MOST:
            findings.append(left_out("SMP server", f"{len(hosts) - _MOST} more of the lists were not tried"))
        if not hosts:
            findings.append(left_out("SMP server", "[subscriber] names none: apps choose them"))
        if config.vapid_key:
            findings.append(left_out("Web Push", "each app chooses its push service: `ntf-server push-test` tries one"))
        return [*_clock(skews), *findings]
    finally:
        names.close()
        await engine.close()


async def _within(name: str, look: Look, turns: asyncio.Semaphore) -> Sequence[Finding]:
    """What fails, or takes too long, is told as well."""
    async with turns:
        try:
            async with asyncio.timeout(EACH):
                return await look()
        except TimeoutError:
            return [
                wrong(name, f"no answer within {EACH:g} s", "is there a firewall that drops what it should refuse?")
            ]


def _clock(skews: Sequence[tuple[str, float]]) -> Iterator[Finding]:
    if not skews:
        yield left_out("clock", "no provider told its time, so nothing is known of this machine's")
        return
    whose, skew = max(skews, key=lambda each: abs(each[1]))
    words, cure = clock_words(skew, whose), "set it: `timedatectl set-ntp true`"
    if abs(skew) > _WRONG_SKEW:
        yield wrong("clock", words, cure)
    elif abs(skew) > SKEW:
        yield warning("clock", words, cure)
    else:
        yield well("clock", words)


async def _own_name(host: str, resolver: Resolver) -> Sequence[Finding]:
    try:
        found = await resolve(host, resolver)
    except UnreachableError:
        cure = "have the name's zone lead to this server, or set [transport] host to one that does"
        return [wrong("address", f"{host}: the server's own name leads nowhere, so apps do not find it", cure)]
    return [well("address", f"{host} leads to {', '.join(found.all[:4])}")]


# --- push providers


def _endpoints(config: Config) -> Iterator[tuple[str, Endpoint]]:
    if (apns := apns_settings(config, generate_key())) is not None:
        yield from ((_NAMES[provider], endpoint) for provider, endpoint in apns.hosts.items())
    if (fcm := fcm_settings(config)) is not None:
        yield "FCM", fcm.push_to
        yield "Google OAuth", fcm.token_endpoint


async def _provider(
    name: str, endpoint: Endpoint, resolver: Resolver, engine: HttpEngine, skews: list[tuple[str, float]]
) -> Sequence[Finding]:
    host, port = host_of(endpoint)
    try:
        if endpoint.proxy:
            reached = await connect_through(endpoint)
        else:
            reached = await connect(usable(endpoint, await resolve(host, resolver)), port, tls_context(endpoint), host)
    except UnreachableError as e:
        return [wrong(name, f"{e.step}: {e}", e.cure)]
    answer = await _ask(engine, endpoint)
    if isinstance(answer, HttpFailure):
        return [wrong(name, f"{host}: {reached}; asked for the time: {answer}", "is something between that opens TLS?")]
    if answer.date is not None:
        skews.append(("Apple" if name.startswith("APNs") else "Google", answer.date - time.time()))
    return [well(name, f"{host}: {reached}")]


async def _ask(engine: HttpEngine, endpoint: Endpoint) -> HttpResult:
    answer: asyncio.Future[HttpResult] = asyncio.get_running_loop().create_future()
    path = "" if endpoint.url.count("/") > 2 else "/"
    engine.send([(HttpRequest(endpoint, path, (), b"", dated=True), answer.set_result)])
    return await answer


# --- SMP servers


def _smp_hosts(config: Config) -> list[str]:
    """Those that the lists name; networks name none."""
    named = [pattern for pattern in config.servers.allow if isinstance(pattern, str)]
    return list(dict.fromkeys([*named, *config.settings.subscriber.own_server_domains]))


async def _smp_server(host: str, port: int, config: Config, names: Names) -> Sequence[Finding]:
    """TCP and TLS. Which identity it has is looked at when queues are subscribed."""
    began = time.monotonic()
    try:
        route = await find_route(host, port, config.network, names)
        sock = await open_socket(route, "doctor", EACH)
    except ResolveError as e:
        return [left_out("SMP server", f"{host}: {e}: it may be a domain that stands for the servers below it")]
    except ConnectError as e:
        return [wrong("SMP server", f"{host}: {e}", "is it up, and does a firewall keep this machine from it?")]
    except OSError as e:
        cure = "is it up, and does a firewall keep this machine from it?"
        return [wrong("SMP server", f"{host}:{port}: {e.strerror or e}", cure)]
    try:
        reached = await shake_hands(sock, f"{host}:{port}", client_context("smp"), "", began)
    except UnreachableError as e:
        return [wrong("SMP server", f"{host}: {e}", "is it an SMP server that answers there?")]
    if reached.alpn != "smp/1":
        cure = "is it an SMP server, of a version that still counts?"
        return [warning("SMP server", f"{host}: {reached}: it did not agree to SMP (ALPN)", cure)]
    return [well("SMP server", f"{host}: {reached}")]
