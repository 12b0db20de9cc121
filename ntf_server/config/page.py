"""`[admin]`: where the live page is shown, and to whom."""

import hashlib
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ntf_server.config.mistakes import ConfigError
from ntf_server.config.settings import Admin
from ntf_server.config.source import CONFIG_FILE
from ntf_server.permissions import unreadable
from smp_bridge.address import parse_host
from smp_bridge.encoding import ParseError

SHORTEST: Final = 20  # characters of a token
_LONGEST: Final = 1000


@dataclass(frozen=True, slots=True)
class Page:
    """`host` None: all interfaces; `socket`: listened on in their place. `token`: the SHA-256 of what who looks has to
    know, None: nobody is asked for one. `hosts`: names, in lower case, by which it may be asked without a token.
    """

    host: str | None
    port: int
    socket: Path | None
    token: bytes | None = field(repr=False)
    hosts: frozenset[str]

    @property
    def setting(self) -> str:
        """What says where it is."""
        return "bind, port" if self.socket is None else "page_socket"

    @property
    def url(self) -> str:
        """As an operator opens it."""
        if self.socket is not None:
            return str(self.socket)
        host = self.host or "localhost"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"


def is_loopback(host: str) -> bool:
    """Whether nobody from another machine gets to this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def parse_page(directory: Path, admin: Admin) -> Page | None:
    """None: it is off. Raises ConfigError."""
    file = directory / CONFIG_FILE
    if not admin.port and not admin.page_socket:
        return None
    if admin.port and admin.page_socket:
        raise ConfigError(f"{file}: [admin] page_socket: goes without port; remove one of them")
    if admin.page_socket and admin.page_socket == admin.socket:
        raise ConfigError(f"{file}: [admin] page_socket: is [admin] socket, which is for commands; give another path")
    token = directory / admin.token_file
    if not admin.token_file and not admin.page_socket and not is_loopback(admin.bind):
        where = f"{admin.bind or 'an empty bind'} is open to other machines"
        make = f"make one, `{_make(directory / 'page.token')}`, and set token_file to it, or bind to 127.0.0.1"
        raise ConfigError(f"{file}: [admin] token_file: is missing, and {where}; {make}")
    return Page(
        host=admin.bind or None,
        port=admin.port,
        socket=directory / admin.page_socket if admin.page_socket else None,
        token=_digest(file, token) if admin.token_file else None,
        hosts=frozenset(_host(file, host) for host in admin.hosts),
    )


def _make(path: Path) -> str:
    return f"umask 077; openssl rand -base64 24 >{path}"


def _digest(file: Path, path: Path) -> bytes:
    """Of the token that stands there. Raises ConfigError."""
    where, make = f"{file}: [admin] token_file", f"make one: `{_make(path)}`"
    try:
        with path.open("rb") as opened:
            token = opened.read(_LONGEST + 1).strip()
    except OSError as e:
        raise ConfigError(f"{where}: {unreadable(path, e, make)}") from None
    if not SHORTEST <= len(token) <= _LONGEST or not all(0x21 <= byte <= 0x7E for byte in token):
        what = f"is no token of {SHORTEST} characters or more, letters, digits and signs"
        raise ConfigError(f"{where}: {path}: {what}; {make}")
    return hashlib.sha256(token).digest()


def _host(file: Path, host: str) -> str:
    """Raises ConfigError."""
    try:
        return parse_host(host).lower()
    except ParseError as e:
        raise ConfigError(f"{file}: [admin] hosts: {e}; give host names or IP addresses, without ports") from None
