"""Settings: `ntf-server.toml`, overridden by environment variables `NTF_SERVER__SECTION__KEY`."""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from ntf_server.identity_files import IdentityFileError, load_credentials
from ntf_server.push.apns import KeyFileError, load_key
from ntf_server.push.http import default_ca_file
from smp_bridge.address import parse_host
from smp_bridge.encoding import ParseError
from smp_bridge.identity import Credentials

CONFIG_FILE: Final = "ntf-server.toml"
DEFAULT_DIR: Final = "/etc/opt/simplex-notifications"
_PREFIX: Final = "NTF_SERVER__"
_REFERENCE: Final = "see docs/reference/configuration.md"

_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_AnyPort = Annotated[int, msgspec.Meta(ge=0, le=65535)]
# Upper bounds keep the numbers within what timers, libcurl and SQLite take; they also refuse nan and inf.
_Seconds = Annotated[float, msgspec.Meta(ge=0.001, le=86_400.0)]
_Ttl = Annotated[int, msgspec.Meta(ge=1, le=31_536_000)]
_InFlight = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
_Idle = Annotated[float, msgspec.Meta(ge=0.0, le=31_536_000.0)]


class ConfigError(Exception):
    """One line: where, which key, and what to do."""


class _Section(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Settings of a section; unknown keys are errors."""


class Transport(_Section, frozen=True):
    """`host`: the name in the server's address; `bind`: the interface that is listened on."""

    host: str = ""
    port: _AnyPort = 443
    bind: str = ""


class Store(_Section, frozen=True):
    """`url`: `sqlite:///relative` or `sqlite:////absolute`; empty: `ntf-server.db` beside the configuration."""

    url: str = ""


class ApnsHost(_Section, frozen=True):
    """One APNs host. `ca_file`: PEM bundle to trust instead of the system's."""

    host: str
    port: _Port = 443
    ca_file: str = ""


class Apns(_Section, frozen=True):
    """`key_file`: the `.p8` file from Apple. Its absence turns AD and AP off; `test` turns AT on."""

    key_file: str = ""
    key_id: str = ""
    team_id: str = ""
    topic: str = "chat.simplex.app"
    production: ApnsHost = ApnsHost(host="api.push.apple.com")
    sandbox: ApnsHost = ApnsHost(host="api.sandbox.push.apple.com")
    test: ApnsHost | None = None


class Delivery(_Section, frozen=True):
    """Seconds; `in_flight`: pushes that one provider may have under way."""

    message_ttl: _Ttl = 24 * 3600
    verification_ttl: _Ttl = 600
    in_flight: _InFlight = 1000
    timeout: _Seconds = 30.0
    min_backoff: _Seconds = 1.0
    max_backoff: _Seconds = 300.0


class SubscriberSection(_Section, frozen=True):
    """`allow_private_hosts`: SMP servers on private and loopback addresses (for testing)."""

    use_service_credentials: bool = False
    allow_private_hosts: bool = False


class InactiveClients(_Section, frozen=True):
    """`ttl`: seconds without a command after which a client is disconnected; 0: never."""

    ttl: _Idle = 12 * 3600.0


class Log(_Section, frozen=True):
    """Logging goes to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Settings(_Section, frozen=True):
    """The whole file."""

    transport: Transport = Transport()
    store: Store = Store()
    apns: Apns = Apns()
    delivery: Delivery = Delivery()
    subscriber: SubscriberSection = SubscriberSection()
    inactive_clients: InactiveClients = InactiveClients()
    log: Log = Log()


@dataclass(frozen=True, slots=True)
class Config:
    """Settings that were checked, and what the files that they name hold."""

    directory: Path
    settings: Settings
    credentials: Credentials
    database: Path


def config_dir(path: str | None, environ: Mapping[str, str] = os.environ) -> Path:
    """`--path`, else $NTF_SERVER_CFG_PATH, else the reference's directory."""
    return Path(path or environ.get("NTF_SERVER_CFG_PATH") or DEFAULT_DIR)


def load(directory: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Read and check everything. Raises ConfigError."""
    settings = load_settings(directory, environ)
    try:
        credentials = load_credentials(directory)
    except IdentityFileError as e:
        raise ConfigError(str(e)) from e
    _check(directory, settings)
    return Config(directory, settings, credentials, _database(directory, settings))


def load_settings(directory: Path, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings alone. Raises ConfigError."""
    file = directory / CONFIG_FILE
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: not found; run `ntf-server init --path {directory}`, or give --path") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ConfigError(f"{file}: cannot be read: {e}") from e
    source = str(file)
    for name, value in sorted(environ.items()):
        if name.startswith(_PREFIX):
            source = f"{file} with {_PREFIX}… variables"
            _override(values, name, value)
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as e:
        raise ConfigError(f"{source}: {_explain(str(e))}") from None


def load_database_path(directory: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the database is. Raises ConfigError."""
    return _database(directory, load_settings(directory, environ))


def _override(values: dict[str, Any], name: str, value: str) -> None:
    *sections, key = name.removeprefix(_PREFIX).lower().split("__")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{name}: {section} is not a section; {_REFERENCE}")
    if not sections or not all([*sections, key]):
        raise ConfigError(f"{name}: should be {_PREFIX}SECTION__KEY, as in {_PREFIX}TRANSPORT__PORT")
    values[key] = value


def _explain(error: str) -> str:
    """`[section] key: what is wrong` from msgspec's `what is wrong - at `$.section.key``."""
    what, _, where = error.partition(" - at `$")
    path = where.rstrip("`").lstrip(".").split(".") if where else []
    for kind in ("unknown", "missing required"):
        if f"{kind} field `" in what:
            path.append(what.rpartition("field `")[2].rstrip("`"))
            what = "unknown key; remove it or mend its name" if kind == "unknown" else "is missing; set it"
    if not what.startswith(("unknown", "is missing")):
        what = f"{what}; {_REFERENCE}"
    path = [p for p in path if p]
    section = ".".join(path[:-1])
    key = path[-1] if path else "the file"
    return (f"[{section}] " if section else "") + f"{key}: {what[:1].lower()}{what[1:]}"


def _check(directory: Path, settings: Settings) -> None:
    file = directory / CONFIG_FILE
    apns, delivery = settings.apns, settings.delivery
    _host(file, "transport", settings.transport.host or "localhost")
    for key in ("topic", "key_id", "team_id"):
        value = getattr(apns, key)
        if (apns.key_file and not value) or not re.fullmatch(r"[!-~]*", value):
            raise ConfigError(f"{file}: [apns] {key}: goes with key_file; set it to the one that Apple shows")
    if apns.key_file:
        apns_key(directory, settings)
    for name, host in apns_hosts(settings).items():
        _host(file, f"apns.{name}", host.host)
        _ca_file(file, f"apns.{name}", directory, host)
    if settings.subscriber.use_service_credentials:
        raise ConfigError(f"{file}: [subscriber] use_service_credentials: is not supported yet; set it to false")
    if delivery.min_backoff > delivery.max_backoff:
        raise ConfigError(f"{file}: [delivery] min_backoff: is more than max_backoff; set it to less")


def _host(file: Path, section: str, host: str) -> None:
    try:
        parse_host(host)
    except ParseError as e:
        raise ConfigError(f"{file}: [{section}] host: {e}; give a host name or an IP address") from e


def apns_hosts(settings: Settings) -> dict[str, ApnsHost]:
    """The APNs hosts that are in use, by section name."""
    apns = settings.apns
    hosts = {"production": apns.production, "sandbox": apns.sandbox} if apns.key_file else {}
    return {**hosts, "test": apns.test} if apns.test else hosts


def apns_key(directory: Path, settings: Settings) -> Any:
    """The private key of `[apns] key_file`. Raises ConfigError."""
    path = directory / settings.apns.key_file
    try:
        return load_key(path.read_bytes())
    except (OSError, KeyFileError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        raise ConfigError(
            f"{directory / CONFIG_FILE}: [apns] key_file: {path}: {reason}; give the .p8 file from Apple"
        ) from e


def ca_file(directory: Path, host: ApnsHost) -> str:
    """The CA bundle to check a push provider with. Raises ConfigError."""
    return _ca_file(directory / CONFIG_FILE, "apns", directory, host)


def _ca_file(file: Path, section: str, directory: Path, host: ApnsHost) -> str:
    path = str(directory / host.ca_file) if host.ca_file else default_ca_file()
    if path is None:
        raise ConfigError(
            f"{file}: [{section}] ca_file: the system has no CA bundle; install ca-certificates or set it"
        )
    if not Path(path).is_file():
        raise ConfigError(f"{file}: [{section}] ca_file: {path}: no such file; give a PEM bundle")
    return path


def _database(directory: Path, settings: Settings) -> Path:
    url = settings.store.url
    file = directory / CONFIG_FILE
    if not url:
        return directory / "ntf-server.db"
    path = url.removeprefix("sqlite:///")
    if path == url or not path:
        raise ConfigError(
            f"{file}: [store] url: {url.split(':')[0]}: must be sqlite:///PATH (sqlite:////PATH if absolute)"
        )
    full = directory / path
    if not full.parent.is_dir():
        raise ConfigError(f"{file}: [store] url: {full.parent}: no such folder; create it")
    if full.is_dir():
        raise ConfigError(f"{file}: [store] url: {full}: is a folder; give a file")
    return full
