"""Text of users and operators: proxies, rates, lists of hosts, contacts, the configuration file."""

import atexit
import contextlib
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from fuzz.target import Target, add
from ntf_server.admission import addresses, proxy_header
from ntf_server.admission.budgets import Rate
from ntf_server.config import files, source
from ntf_server.config.contact import ContactError, check_contact
from ntf_server.config.contradictions import contradictions
from ntf_server.config.limits import LimitsError, parse_limits, parse_networks
from ntf_server.config.mistakes import ConfigError
from ntf_server.config.server_list import ServerList, matches, parse_pattern
from ntf_server.config.settings import Limits, Settings
from ntf_server.store.contract import StoreConflictError
from ntf_server.store.redis.url import Login, RedisUrl, is_redis_url, parse_redis_url
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import ParseError
from smp_bridge.network import Network, NoHostError, is_onion, is_public_host
from smp_bridge.socks import SocksProxy


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _check_proxy(proxy: SocksProxy) -> None:
    assert 0 < proxy.port < 65536
    proxy.host.encode("idna")
    for user in (proxy.user, proxy.credentials("isolation")):
        assert user is None or all(0 < len(part.encode("ascii")) < 256 for part in user)
    assert SocksProxy.parse(f"[{proxy.host}]:{proxy.port}" if ":" in proxy.host else f"{proxy.host}:{proxy.port}")


add(
    Target(
        "socks proxy",
        lambda data: SocksProxy.parse(_text(data)),
        lambda: [
            b"localhost:9050",
            b"socks5://user:pass%20word@127.0.0.1:9050",
            b"@[::1]:9050",
            b":9050",
            b"socks5h://proxy.example",
            b"http://proxy",
            "b\u00fccher.example:1".encode(),
        ],
        ["smp_bridge.socks.SocksProxy.parse"],
        (ParseError,),
        _check_proxy,
        max_size=300,
        words=[b"socks5h://", b"socks5://", b"@", b"%20"],
    )
)


def _check_rate(rate: Rate) -> None:
    assert 1 <= len(rate.paces) <= 2
    assert all(pace.at_once >= 1 and pace.per_second > 0 for pace in rate.paces)
    assert Rate.parse(" and ".join(f"{pace.at_once} + {pace.per_second:.6f}/s" for pace in rate.paces)) == rate


add(
    Target(
        "rate",
        lambda data: Rate.parse(_text(data)),
        lambda: [b"300 + 5/s", b"1 + 0.000001/s", b"9999999 + 999999.999999/s", b"0 + 1/s", b"30 + 10/s and 300 + 5/s"],
        ["ntf_server.admission.budgets.Rate.parse"],
        (ValueError,),
        _check_rate,
        max_size=80,
        words=[b" + ", b"/s", b" and "],
    )
)


def _hosts(data: bytes) -> tuple[str, list[Any]]:
    """A host, and patterns that it is held against."""
    host, *patterns = _text(data).split("\n")
    return host, [parse_pattern(p) for p in patterns[:4]]


def _check_hosts(parsed: tuple[str, list[Any]]) -> None:
    host, patterns = parsed
    for pattern in patterns:
        assert parse_pattern(str(pattern)) == pattern
        if isinstance(pattern, str):
            assert matches(pattern, (pattern,))
            assert matches("sub." + pattern + ".", (pattern,))
    matches(host, tuple(patterns))
    is_public_host(host)
    is_onion(host)
    for key in addresses.keys(host, parse_networks(["192.0.2.0/24"])):
        addresses.text(key)


def _check_lists(parsed: tuple[str, list[Any]]) -> None:
    host, patterns = parsed
    _check_hosts(parsed)
    try:
        server = ServerAddress.from_text(f"smp://{'A' * 43}=@{host}")
    except ParseError:
        return
    allowed, denied = ServerList(allow=tuple(patterns)), ServerList(deny=tuple(patterns))
    if patterns:
        assert not (allowed.permits(server) and denied.permits(server))
    try:
        assert Network().hosts(server)
    except NoHostError:
        assert all(map(is_onion, server.reachable))


add(
    Target(
        "server list",
        _hosts,
        lambda: [
            b"smp.example.org\n.example.org\n*.example.com",
            b"127.1\n127.0.0.0/8",
            b"::ffff:192.0.2.1\n192.0.2.0/24\n2001:db8::/32",
            b"smp4.simplex.im\no5vmywmrnaxalvz6wi3zicyftgio6psuvyniis6gco6bp6ekl4cqj4id.onion",
            b"fe80::1%eth0\n[::1]",
        ],
        ["ntf_server.config.server_list.parse_pattern", "ntf_server.config.server_list.matches"],
        (ParseError,),
        _check_lists,
        max_size=200,
        words=[b".example.org", b"*.", b"0x7f.", b".onion", b"smp4.simplex.im"],
    )
)
add(
    Target(
        "contact",
        lambda data: check_contact(_text(data)),
        lambda: [
            b"mailto:push@ntf.example.org",
            b"https://ntf.example.org/x",
            b"mailto:a@b?subject=x",
            b"https://[::1]",
        ],
        ["ntf_server.config.contact.check_contact"],
        (ContactError,),
        max_size=200,
        words=[b"mailto:", b"https://", b".example.org"],
    )
)


def _limits(data: bytes) -> Any:
    shared, rate, *_ = [*_text(data).split("\n"), "", ""]
    return parse_limits(Limits(shared=shared.split(), registrations=rate))


add(
    Target(
        "limits",
        _limits,
        lambda: [b"192.0.2.0/24 2001:db8::/32\n300 + 5/s", b"\n1 + 1/s", b"192.0.2.1/24\n1 + 1/s", b"1\n1 + 1/s"],
        ["ntf_server.config.limits.parse_limits", "ntf_server.config.limits.parse_networks"],
        (LimitsError,),
        max_size=100,
    )
)


def _proxied(data: bytes) -> str | None:
    head, rest = data[:16], data[16:]
    if len(head) < proxy_header.HEAD:  # the listener waits for all of it
        raise proxy_header.ProxyHeaderError
    size = proxy_header.rest_size(head)
    assert 0 <= size <= proxy_header.MAX_REST
    return proxy_header.client_address(head, rest[:size].ljust(size, b"\0"))


def _check_proxied(host: str | None) -> None:
    assert host is None or addresses.keys(host)


add(
    Target(
        "proxy header",
        _proxied,
        lambda: [
            proxy_header.SIGNATURE + tail
            for tail in (
                b"\x21\x11\0\x0c" + bytes([192, 0, 2, 1, 192, 0, 2, 2, 0, 80, 1, 187]),
                b"\x21\x21\0\x24" + bytes(36),
                b"\x20\0\0\0",
                b"\x21\x11\0\x10" + bytes(16),
            )
        ],
        ["ntf_server.admission.proxy_header.rest_size", "ntf_server.admission.proxy_header.client_address"],
        (proxy_header.ProxyHeaderError,),
        _check_proxied,
        max_size=128,
        words=[proxy_header.SIGNATURE],
    )
)


# --- where Redis is


def _check_redis_url(url: RedisUrl) -> None:
    assert url.hosts and all(host.host and 0 <= host.port < 65536 for host in url.hosts)
    assert str(url).isprintable() and is_redis_url(str(url))
    other = replace(url, login=Login(url.login.user, "x"), sentinel_login=Login(url.sentinel_login.user, "x"))
    assert (repr(url), str(url)) == (repr(other), str(other))  # no password is in them


add(
    Target(
        "redis url",
        lambda data: parse_redis_url(_text(data), Path("/etc")),
        lambda: [
            b"redis://user:pass%40word@redis.example.org:6379/1?prefix=relay",
            b"rediss://[::1]?ca_file=ca.pem&cert_file=cert.pem&key_file=key.pem",
            b"unix://:password@/run/redis.sock?db=2",
            b"redis+sentinel://:p@a,b:1/relay/2?sentinel_user=s&sentinel_password=q",
            b"rediss+cluster://a,b:7000,[::1]:1",
            b"redis://a,b",
            b"redis://:a/b@c",
        ],
        ["ntf_server.store.redis.url.parse_redis_url"],
        (StoreConflictError,),
        _check_redis_url,
        max_size=300,
        words=[b"redis://", b"+sentinel://", b"+cluster://", b"unix:///", b"?prefix=", b"&db=", b"@", b"%2F", b"[::1]"],
    )
)


# --- the configuration


@cache
def _directory() -> Path:
    path = tempfile.mkdtemp(prefix="fuzz-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


def _settings(data: bytes) -> Settings:
    """The file; after a null byte, variables over it."""
    file, *variables = data.split(b"\0")
    (_directory() / source.CONFIG_FILE).write_bytes(file)
    pairs = [_text(v).partition("=") for v in variables[:4]]
    try:
        return source.load_settings(_directory(), {f"NTF_SERVER__{name}": value for name, _, value in pairs})
    except ConfigError as e:
        assert all(line.isprintable() for line in e.mistakes)
        raise


def _check_settings(settings: Settings) -> None:
    """What has to be a file is none here; what needs no file gives settings or ConfigError."""
    assert all("\n" not in line for _, line in contradictions(_directory(), settings, web_push=True))
    for check in (files._server_list, files._budgets, files._proxies, files._smp_network):
        with contextlib.suppress(ConfigError):
            check(_directory(), settings)


_CONFIG = b"""[transport]
host = "ntf.example.org"
port = 443
bind = "::"
proxies = ["192.0.2.0/24"]
[store]
url = "sqlite:///ntf.db"
[subscriber]
allow_servers = [".example.org"]
deny_servers = []
socks_proxy = "localhost:9050"
host_mode = "onion"
[web_push]
contact = "mailto:a@example.org"
allow_hosts = ["push.example.org"]
[delivery]
min_backoff = 1.5
max_backoff = 600
[limits]
registrations = "100 + 1/s"
[apns.test]
host = "localhost"
port = 2197
"""

add(
    Target(
        "configuration",
        _settings,
        lambda: [
            _CONFIG,
            b"",
            b"[transport]\nport = 70000\n",
            b"\xef\xbb\xbf[transport]\0TRANSPORT__PORT=5223\0SUBSCRIBER__ALLOW_SERVERS=a.example, b.example",
            b"transport = 1\0TRANSPORT__PORT=1",
            b"\0X=1",
            b"a = 2026-01-01T00:00:00Z",
        ],
        ["ntf_server.config.source.load_settings"],
        (ConfigError,),
        _check_settings,
        max_size=800,
        share=0.25,
        words=[b"[transport]", b"[limits]", b"port = ", b"= [", b'"', b"\0TRANSPORT__", b"\0LIMITS__", b"= nan"],
    )
)
