"""Where a Redis is, and how to come in: `[store] url`, parsed once. No text here has a password in it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote

from ntf_server.store.contract import StoreConflictError

DEFAULT_PREFIX: Final = "ntf"
_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_SERVICE: Final = re.compile(r"[A-Za-z0-9_.-]{1,255}")
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")  # no braces: they would move hash tags


class Kind(Enum):
    """What stands at the URL's hosts."""

    ALONE = "one primary"
    SENTINEL = "Sentinels, which know the primary"
    CLUSTER = "a cluster"


class Endpoint(NamedTuple):
    """A server. `port` 0: `host` is the path of a Unix socket."""

    host: str
    port: int

    def __str__(self) -> str:
        if self.port == 0:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Login(NamedTuple):
    """Who we are to a server; no password: nobody."""

    user: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Login(user={self.user!r})"


NOBODY: Final = Login()


@dataclass(frozen=True)
class TlsOptions:
    """PEM files. No `ca_file`: the system's authorities; no `cert_file`: no client certificate."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


@dataclass(frozen=True)
class RedisUrl:
    """`hosts` are those to begin with: the one server, Sentinels, or nodes of a cluster. `tls` None: in the clear."""

    kind: Kind
    hosts: tuple[Endpoint, ...]
    login: Login = NOBODY
    sentinel_login: Login = NOBODY
    service: str = ""  # the primary's name with Sentinels
    database: int = 0
    tls: TlsOptions | None = None
    prefix: str = DEFAULT_PREFIX
    name: str = field(default="", compare=False)  # for people, without login and options

    def __str__(self) -> str:
        return self.name


class _Form(NamedTuple):
    kind: Kind
    tls: bool
    port: int  # that of hosts without one


_FORMS: Final[Mapping[str, _Form]] = {
    "redis": _Form(Kind.ALONE, False, _PORT),
    "rediss": _Form(Kind.ALONE, True, _PORT),
    "unix": _Form(Kind.ALONE, False, 0),
    "redis+sentinel": _Form(Kind.SENTINEL, False, _SENTINEL_PORT),
    "rediss+sentinel": _Form(Kind.SENTINEL, True, _SENTINEL_PORT),
    "redis+cluster": _Form(Kind.CLUSTER, False, _PORT),
    "rediss+cluster": _Form(Kind.CLUSTER, True, _PORT),
}


def is_redis_url(url: str) -> bool:
    """Whether its scheme is one of ours."""
    scheme, separator, _ = url.partition("://")
    return bool(separator) and scheme in _FORMS


def parse_redis_url(url: str, directory: Path = Path()) -> RedisUrl:
    """What a URL says; its files are relative to `directory`.

    `redis://[USER:PASSWORD@]HOST[:PORT][/DB]` and `rediss://` (TLS); `unix://[USER:PASSWORD@]/PATH[?db=DB]`;
    `redis+sentinel://[USER:PASSWORD@]HOST[:PORT],…/SERVICE[/DB]`; `redis+cluster://[USER:PASSWORD@]HOST[:PORT],…`; both
    with `rediss` too. Options: `prefix` of all keys; with TLS `ca_file`, `cert_file`, `key_file`; with Sentinels
    `sentinel_user`, `sentinel_password`. What stands before a host's `@`, in a path and in options is percent-encoded.
    Raises StoreConflictError with a line that names what is wrong, and none of the values.
    """
    scheme, separator, rest = url.partition("://")
    form = _FORMS.get(scheme)
    if form is None or not separator:
        raise _wrong(f"begins with none of {', '.join(f'{known}://' for known in _FORMS)}")
    if not url.isprintable():
        raise _wrong("has characters that cannot be printed")
    rest, _, query = rest.partition("?")
    if "#" in rest or "#" in query:
        raise _wrong("has a # that is not written as %23")
    authority, slash, path = rest.partition("/")
    logged_in, at, netloc = authority.rpartition("@")
    if "@" in logged_in:
        raise _wrong("has an @ in the user or the password that is not written as %40")
    login = _login(logged_in) if at else NOBODY
    options = _options(query)
    if scheme == "unix":
        hosts, service, database = _socket(netloc, slash + path), "", options.pop("db", "")
        name = f"unix://{hosts[0]}"
    else:
        hosts = tuple(_host(text, form.port) for text in netloc.split(","))
        service, database = _path(form.kind, path)
        name = f"{scheme}://{','.join(map(str, hosts))}" + (f"/{service}" if service else "")
    if form.kind is Kind.ALONE and len(hosts) != 1:
        raise _wrong(f"names more than one host: {scheme}+sentinel:// and {scheme}+cluster:// do")
    if form.kind is Kind.CLUSTER and database not in ("", "0"):
        raise _wrong("names a database: a cluster has but one")
    number = _number(database, 1_000_000, "database") if database else 0
    sentinel_login = NOBODY
    if form.kind is Kind.SENTINEL:
        sentinel_login = Login(options.pop("sentinel_user", ""), options.pop("sentinel_password", ""))
        if sentinel_login.user and not sentinel_login.password:
            raise _wrong("has a sentinel_user without a sentinel_password")
    return RedisUrl(
        kind=form.kind,
        hosts=hosts,
        login=login,
        sentinel_login=sentinel_login,
        service=service,
        database=number,
        tls=_tls_files(options, directory) if form.tls else None,
        prefix=_only_prefix(options, form),
        name=f"{name}/{number}" if number else name,
    )


def _wrong(what: str) -> StoreConflictError:
    return StoreConflictError(f"the store's url {what}")


def _login(text: str) -> Login:
    user, colon, password = text.partition(":")
    if not colon or not password:
        raise _wrong("has a user without a password: USER:PASSWORD@, or :PASSWORD@ for the default user")
    return Login(_decoded(user), _decoded(password))


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise _wrong("is not UTF-8 where it is percent-encoded") from None


def _options(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict") if query else []
    except ValueError:
        raise _wrong("has options that are not NAME=VALUE, in UTF-8 and with & between them") from None
    out = dict(pairs)
    if len(out) != len(pairs):
        raise _wrong("has an option twice")
    if not all(out.values()):
        raise _wrong("has an option without a value")
    return out


def _socket(netloc: str, path: str) -> tuple[Endpoint, ...]:
    decoded = _decoded(path)
    if netloc or not path.strip("/") or not decoded.isprintable():
        raise _wrong("has to be unix:///PATH")
    return (Endpoint(decoded, 0),)


def _host(text: str, default_port: int) -> Endpoint:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        well_formed = bool(bracket) and colon in ("", ":") and ":" in host
    else:
        host, colon, port = text.partition(":")
        well_formed = ":" not in port
    if not host or not well_formed or re.search(r"[\s\[\]%]", host):
        raise _wrong("has to name its hosts as HOST, HOST:PORT or [IPV6]:PORT, with commas between them")
    return Endpoint(host, _number(port, 65535, "port") if colon else default_port)


def _path(kind: Kind, path: str) -> tuple[str, str]:
    """The service and the database, as text."""
    if kind is not Kind.SENTINEL:
        return "", path
    service, _, database = path.partition("/")
    if not _SERVICE.fullmatch(service):  # others Sentinel does not take either
        raise _wrong("names no service, with letters, digits and _.- alone: redis+sentinel://HOST,HOST/SERVICE")
    return service, database


def _number(text: str, most: int, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", text) or int(text) > most:
        raise _wrong(f"has a {what} that is no number up to {most}")
    return int(text)


def _tls_files(options: dict[str, str], directory: Path) -> TlsOptions:
    files = {name: options.pop(name) for name in ("ca_file", "cert_file", "key_file") if name in options}
    if not all(file.isprintable() for file in files.values()):
        raise _wrong("names a file with characters that cannot be printed")
    named = {name: directory / file for name, file in files.items()}
    if "key_file" in named and "cert_file" not in named:
        raise _wrong("has a key_file without a cert_file")
    return TlsOptions(**named)


def _only_prefix(options: dict[str, str], form: _Form) -> str:
    prefix = options.pop("prefix", DEFAULT_PREFIX)
    if options:  # not named here: behind a ? that is not encoded they may be a piece of a password
        raise _wrong(f"has an option other than {', '.join(_allowed(form))}")
    if not _PREFIX.fullmatch(prefix):
        raise _wrong("has a prefix with other characters than letters, digits and _.:-, or more than 64")
    return prefix


def _allowed(form: _Form) -> list[str]:
    return [
        "prefix",
        *(["ca_file", "cert_file", "key_file"] if form.tls else []),
        *(["sentinel_user", "sentinel_password"] if form.kind is Kind.SENTINEL else []),
        *(["db"] if form.port == 0 else []),
    ]
