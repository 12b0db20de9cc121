"""Settings that cannot be, or that do not go together: what no other file is needed to see."""

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ntf_server.config.contact import ContactError, check_contact
from ntf_server.config.settings import Apns, ApnsHost, Settings
from smp_bridge.address import parse_host
from smp_bridge.encoding import ParseError

_APPLE_ID: Final = re.compile(r"[A-Z0-9]{10}")
_KEY_FILE: Final = re.compile(r"AuthKey_([A-Z0-9]{10})\.p8")  # as Apple names it, with the key's id
_NAME_SERVER: Final = re.compile(r"\[(?P<v6>[^\]]*)\](:[0-9]{1,5})?|(?P<v4>[^:]*)(:[0-9]{1,5})?|(?P<plain>.*:.*:.*)")
_PROXY_SCHEMES: Final = ("http", "https", "socks5", "socks5h")


def contradictions(file: Path, settings: Settings, *, web_push: bool) -> Iterator[tuple[str, str]]:
    """(section, line) of each. `web_push`: it is on."""
    for section, key, what in _all(settings, web_push=web_push):
        yield section.partition(".")[0], f"{file}: [{section}] {key}: {what}"


def _all(settings: Settings, *, web_push: bool) -> Iterator[tuple[str, str, str]]:
    """(section, key, what is wrong and the cure)."""
    yield from _host("transport", settings.transport.host or "localhost")
    yield from (("transport", "name_servers", what) for what in _name_servers(settings.transport.name_servers))
    yield from (("apns", key, what) for key, what in _apns(settings.apns))
    for name, host in apns_hosts(settings).items():
        yield from _host(f"apns.{name}", host.host)
    if settings.fcm.service_account_file:
        yield from _host("fcm", settings.fcm.host)
    if web_push:
        try:
            check_contact(settings.web_push.contact)
        except ContactError as e:
            cure = "give one that push services can reach you by, as in mailto:push@ntf.example.org"
            yield "web_push", "contact", f"{e}; {cure}"
    for section in ("apns", "fcm", "web_push"):
        if not _is_proxy(getattr(settings, section).proxy):
            cure = "give http://, https://, socks5:// or socks5h://[USER:PASSWORD@]HOST:PORT"
            yield section, "proxy", f"is no proxy's URL with a port; {cure}"
    yield from (("subscriber", key, what) for key, what in _subscriber(settings))
    if settings.delivery.min_backoff > settings.delivery.max_backoff:
        yield "delivery", "min_backoff", "is more than max_backoff; set it to less"


def apns_hosts(settings: Settings) -> dict[str, ApnsHost]:
    """The APNs hosts that are in use, by section name."""
    apns = settings.apns
    real = apns.key_file or apns.certificate_file
    hosts = {"production": apns.production, "sandbox": apns.sandbox} if real else {}
    return {**hosts, "test": apns.test} if apns.test else hosts


def _host(section: str, host: str) -> Iterator[tuple[str, str, str]]:
    try:
        parse_host(host)
    except ParseError as e:
        yield section, "host", f"{e}; give a host name or an IP address"


def _apns(apns: Apns) -> Iterator[tuple[str, str]]:
    if apns.key_file:
        named = _KEY_FILE.search(apns.key_file)
        for key in ("key_id", "team_id"):
            value = getattr(apns, key)
            if not value:
                yield key, "goes with key_file; set it to the one that Apple shows"
            elif not _APPLE_ID.fullmatch(value):
                hint = f", which is {named[1]} by the name of key_file" if named and key == "key_id" else ""
                yield key, f"is not 10 capital letters and digits; set it to the one that Apple shows{hint}"
            elif named and key == "key_id" and value != named[1]:
                yield key, f"is not {named[1]}, which key_file is named after; set it to that, or rename the file"
    if (apns.key_file and not apns.topic) or not re.fullmatch(r"[!-~]*", apns.topic):
        yield "topic", "is no bundle id; set it to that of the app, as in chat.simplex.app"
    if apns.key_file and apns.certificate_file:
        yield "certificate_file", "goes without key_file; remove one of them"


def _is_proxy(url: str) -> bool:
    """An empty one is none, which will do."""
    if not url:
        return True
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        return False
    return bool(re.fullmatch(r"[!-~]+", url) and parts.scheme in _PROXY_SCHEMES and host and port)


def _subscriber(settings: Settings) -> Iterator[tuple[str, str]]:
    subscriber = settings.subscriber
    for domain in subscriber.own_server_domains:
        if not re.fullmatch(r"\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", domain):
            yield "own_server_domains", f"{domain!r} is none; give domains"
    if not subscriber.socks_proxy:
        if subscriber.socks_mode == "always":
            yield "socks_mode", "always needs socks_proxy; set it, as in localhost:9050"
        if subscriber.host_mode == "onion":
            yield "host_mode", "onion needs socks_proxy; set it, as in localhost:9050"


def _name_servers(texts: tuple[str, ...]) -> Iterator[str]:
    for text in texts:
        m = _NAME_SERVER.fullmatch(text)
        try:
            ipaddress.ip_address(m["v6"] or m["v4"] or m["plain"] or "" if m else "")
        except ValueError:
            yield f"{text!r} is no IP address; give addresses of DNS servers: IP, IP:PORT or [IPV6]:PORT"
