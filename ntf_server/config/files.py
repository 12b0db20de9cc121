"""Configuration: settings and the files that they name.

`load` reads each of them once and gives one frozen object, which is all that the relay knows of them.
"""

import os
import shlex
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from ntf_server.admission.addresses import Network as AddressNetwork
from ntf_server.admission.budgets import Budgets
from ntf_server.config.ca import default_ca_file
from ntf_server.config.client_certificate import ClientCertificate, ClientCertificateError
from ntf_server.config.contradictions import apns_hosts, contradictions
from ntf_server.config.identity_files import IdentityFileError, load_credentials
from ntf_server.config.limits import LimitsError, parse_limits, parse_networks
from ntf_server.config.mistakes import ConfigError, Mistakes, NotNowError
from ntf_server.config.page import Page, parse_page
from ntf_server.config.server_list import Pattern, ServerList, parse_pattern
from ntf_server.config.service_account import parse_service_account
from ntf_server.config.settings import Settings
from ntf_server.config.source import CONFIG_FILE, PREFIX, load_settings, read_settings
from ntf_server.config.store_files import StoreFiles
from ntf_server.permissions import unreadable, unwritable
from ntf_server.push.fcm.settings import ServiceAccount, ServiceAccountError
from ntf_server.push.jose import KeyFileError, load_key
from ntf_server.store.contract import StoreConflictError
from ntf_server.store.records import Limits
from ntf_server.store.redis.url import RedisUrl, is_redis_url, parse_redis_url
from ntf_server.store.sealing import MasterKey, SealingError
from smp_bridge.encoding import ParseError
from smp_bridge.identity import Credentials
from smp_bridge.network import Network
from smp_bridge.socks import SocksProxy

T = TypeVar("T")

DATABASE: Final = "ntf-server.db"
DEFAULT_DIR: Final = "/etc/opt/simplex-notifications"
REFERENCE_VAPID_KEY: Final = "vapid.privkey"  # where the reference's server keeps it, as SEC1 PEM
MAX_SOCKET_PATH: Final = 107  # bytes (unix(7): sun_path without its NUL)


@dataclass(frozen=True, slots=True)
class Config:
    """All that was configured, checked and parsed. Of providers that are off, the keys and files are None.

    `store`: the database's file, or where the Redis is; `store_files`: of its TLS, None: without. `limits`: of
    subscriptions; `budgets`: of strangers, None: switched off. `old_vapid_keys`: in the order of the setting;
    `push_hosts`: those of Web Push that are allowed though not public. `ca_files`: paths of PEM bundles, by the section
    that they are for ("apns.test", "fcm", "web_push"). `environ`: the variables that it was loaded with.
    """

    directory: Path
    settings: Settings
    credentials: Credentials
    store: Path | RedisUrl
    store_files: StoreFiles | None
    master_key: MasterKey = field(repr=False)
    servers: ServerList
    push_hosts: tuple[Pattern, ...]
    network: Network
    limits: Limits
    budgets: Budgets | None
    proxies: tuple[AddressNetwork, ...]
    apns_key: ec.EllipticCurvePrivateKey | None = field(repr=False)
    client_certificate: ClientCertificate | None
    service_account: ServiceAccount | None
    vapid_key: ec.EllipticCurvePrivateKey | None = field(repr=False)
    old_vapid_keys: tuple[ec.EllipticCurvePrivateKey, ...] = field(repr=False)
    ca_files: Mapping[str, str]
    admin_socket: Path
    page: Page | None
    environ: Mapping[str, str] = field(repr=False)

    def certificates_end(self) -> Mapping[str, float]:
        """When those in use do, in Unix seconds, by `names.CERTIFICATES`."""
        chain = self.credentials.chain if self.credentials else ()  # there are none where they have a mistake
        ends = {name: c.not_valid_after_utc for name, c in zip(("online", "identity"), chain, strict=False)}
        if self.client_certificate is not None:
            ends["apns"] = self.client_certificate.not_after
        if self.store_files is not None and self.store_files.not_after is not None:
            ends["redis"] = self.store_files.not_after
        return {name: end.timestamp() for name, end in ends.items()}


def config_dir(path: str | None, environ: Mapping[str, str] = os.environ) -> Path:
    """`--path`, else $NTF_SERVER_CFG_PATH, else the reference's directory."""
    return Path(path or environ.get("NTF_SERVER_CFG_PATH") or DEFAULT_DIR)


def load(directory: Path, environ: Mapping[str, str] = os.environ, *, running: Config | None = None) -> Config:
    """Read, check and parse everything. Raises ConfigError; NotNowError if it may pass.

    `running`: what the relay runs with. Its master key is kept if it came from a command that is still the same: the
    command is not asked again for what cannot change while the relay runs.
    """
    config, mistakes = look_over(directory, environ, running=running)
    mistakes.end()
    return config


def look_over(
    directory: Path, environ: Mapping[str, str] = os.environ, *, running: Config | None = None
) -> tuple[Config, Mistakes]:
    """As `load`, with all mistakes, and without what they are about: that is None. Raises ConfigError if there are no
    settings.
    """
    settings, mistakes = read_settings(directory, environ)
    return _parsed(directory, settings, environ, mistakes, running), mistakes


def assemble(directory: Path, settings: Settings, environ: Mapping[str, str] = os.environ) -> Config:
    """What settings mean, with the files that they name. Raises ConfigError, NotNowError."""
    mistakes = Mistakes()
    config = _parsed(directory, settings, environ, mistakes, None)
    mistakes.end()
    return config


def _parsed(
    directory: Path, settings: Settings, environ: Mapping[str, str], mistakes: Mistakes, running: Config | None
) -> Config:
    """With what `Mistakes.find` gives in the place of what has a mistake."""
    apns, fcm, subscriber = settings.apns, settings.fcm, settings.subscriber
    find, vapid_file = mistakes.find, vapid_key_file(directory, settings)
    command = settings.store.master_key_command
    keep = running if running and command and command == running.settings.store.master_key_command else None
    credentials = find(lambda: _credentials(directory))
    for section, line in contradictions(directory / CONFIG_FILE, settings, web_push=bool(vapid_file)):
        mistakes.find(partial(_refuse, line), section)
    store = find(lambda: _store(directory, settings), "store")
    return Config(
        directory=directory,
        settings=settings,
        credentials=credentials,
        store=store,
        store_files=StoreFiles.read(store.tls) if isinstance(store, RedisUrl) and store.tls else None,
        servers=find(lambda: _server_list(directory, settings)),
        push_hosts=find(lambda: _patterns(directory, "[web_push] allow_hosts", settings.web_push.allow_hosts)),
        network=find(lambda: _smp_network(directory, settings)),
        limits=Limits(subscriber.max_subscriptions_per_token, subscriber.max_subscriptions_per_server),
        budgets=find(lambda: _budgets(directory, settings)),
        proxies=find(lambda: _proxies(directory, settings)),
        apns_key=find(lambda: _apns_key(directory, settings) if apns.key_file else None),
        client_certificate=find(lambda: _client_certificate(directory, settings), "apns"),
        service_account=find(lambda: _service_account(directory, settings) if fcm.service_account_file else None),
        vapid_key=find(lambda: _vapid_key(directory, vapid_file) if vapid_file else None),
        old_vapid_keys=find(lambda: _old_vapid_keys(directory, settings) if vapid_file else ()),
        ca_files=_ca_files(directory, settings, mistakes),
        admin_socket=find(lambda: _admin_socket(directory, settings, store) if store else directory, "admin"),
        page=find(lambda: _page(directory, settings), "admin"),
        environ=MappingProxyType({k: v for k, v in environ.items() if k.startswith(PREFIX)}),
        # last: a command may take long
        master_key=keep.master_key if keep else find(lambda: load_master_key(directory, settings), "store"),
    )


def _refuse(line: str) -> None:
    raise ConfigError(line)


def _credentials(directory: Path) -> Credentials:
    try:
        return load_credentials(directory)
    except IdentityFileError as e:
        raise ConfigError(str(e)) from e


def load_database_path(directory: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the database is. Raises ConfigError, also if the store is a Redis."""
    store = _store(directory, load_settings(directory, environ))
    if isinstance(store, RedisUrl):
        raise ConfigError(f"{directory / CONFIG_FILE}: [store] url: {store}: is a Redis; this is for a database's file")
    return store


def load_store(directory: Path, environ: Mapping[str, str] = os.environ) -> Path | RedisUrl:
    """Where the store is: a database's file, or a Redis. Raises ConfigError."""
    return _store(directory, load_settings(directory, environ))


def load_admin_socket(directory: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Where a running relay listens for the operator's commands. Raises ConfigError."""
    settings = load_settings(directory, environ)
    return _admin_socket(directory, settings, _store(directory, settings))


def socket_path_error(path: Path, setting: str = "[admin] socket") -> str | None:
    """Why no Unix socket can have this path, and what to do; None if one can."""
    size = len(os.fsencode(path))
    if size <= MAX_SOCKET_PATH:
        return None
    return f"{path}: {size} bytes are too long for a socket's path; set {setting} to one of {MAX_SOCKET_PATH} at most"


def _admin_socket(directory: Path, settings: Settings, store: Path | RedisUrl) -> Path:
    if not settings.admin.socket:
        return store.with_suffix(".sock") if isinstance(store, Path) else directory / "ntf-server.sock"
    return _socket_path(directory, "[admin] socket", settings.admin.socket)


def _socket_path(directory: Path, setting: str, name: str) -> Path:
    """Of a Unix socket that is to be made. Raises ConfigError."""
    path = directory / name
    if error := socket_path_error(path, setting):
        raise ConfigError(f"{directory / CONFIG_FILE}: {setting}: {error}")
    if not path.parent.is_dir():
        raise ConfigError(f"{directory / CONFIG_FILE}: {setting}: {unwritable(path.parent, setting)}")
    return path


def _page(directory: Path, settings: Settings) -> Page | None:
    """The live page; None: it is off. Raises ConfigError."""
    page = parse_page(directory, settings.admin)
    if page is not None and page.socket is not None:
        _socket_path(directory, "[admin] page_socket", settings.admin.page_socket)
    return page


def _server_list(directory: Path, settings: Settings) -> ServerList:
    """The SMP servers that may be subscribed on. Raises ConfigError."""
    lists: dict[str, tuple[Pattern, ...]] = {}
    for key in ("allow_servers", "deny_servers"):
        lists[key] = _patterns(directory, f"[subscriber] {key}", getattr(settings.subscriber, key))
    return ServerList(lists["allow_servers"], lists["deny_servers"])


def _patterns(directory: Path, name: str, texts: Iterable[str]) -> tuple[Pattern, ...]:
    """Of a list of hosts. Raises ConfigError."""
    try:
        return tuple(map(parse_pattern, texts))
    except ParseError as e:
        mend = "give hosts, domains, IP addresses or networks"
        raise ConfigError(f"{directory / CONFIG_FILE}: {name}: {e}; {mend}") from e


def _budgets(directory: Path, settings: Settings) -> Budgets | None:
    """Of `[limits]`. Raises ConfigError."""
    try:
        return parse_limits(settings.limits)
    except LimitsError as e:
        raise ConfigError(f"{directory / CONFIG_FILE}: [limits] {e}") from e


def _proxies(directory: Path, settings: Settings) -> tuple[AddressNetwork, ...]:
    """Of `[transport]`. Raises ConfigError."""
    try:
        return parse_networks(settings.transport.proxies)
    except ValueError as e:
        mend = "give IP addresses or networks"
        raise ConfigError(f"{directory / CONFIG_FILE}: [transport] proxies: {e}; {mend}") from e


def _smp_network(directory: Path, settings: Settings) -> Network:
    """How SMP servers are reached. Raises ConfigError."""
    subscriber, proxy = settings.subscriber, None
    if subscriber.socks_proxy:
        try:
            proxy = SocksProxy.parse(subscriber.socks_proxy)
        except ParseError as e:  # which holds no password
            mend = "give HOST:PORT, as in localhost:9050"
            raise ConfigError(f"{directory / CONFIG_FILE}: [subscriber] socks_proxy: {e}; {mend}") from None
    return Network(
        host_mode=subscriber.host_mode,
        required_host_mode=subscriber.required_host_mode,
        socks_proxy=proxy,
        socks_mode=subscriber.socks_mode,
        allow_private=subscriber.allow_private_hosts,
        denied=_server_list(directory, settings).denied_networks,
    )


def _apns_key(directory: Path, settings: Settings) -> ec.EllipticCurvePrivateKey:
    """The private key of `[apns] key_file`. Raises ConfigError."""
    return _read(directory, "apns", "key_file", settings.apns.key_file, load_key, mend="give the .p8 file from Apple")


def _vapid_key(directory: Path, name: str) -> ec.EllipticCurvePrivateKey:
    """The VAPID key in force. Raises ConfigError."""
    mend = "give the vapid.key that `ntf-server init` made"
    return _read(directory, "web_push", "key_file", name, load_key, mend=mend)


def _old_vapid_keys(directory: Path, settings: Settings) -> tuple[ec.EllipticCurvePrivateKey, ...]:
    """The private keys of `[web_push] old_key_files`. Raises ConfigError."""
    mend = "give files that were key_file before"
    names = settings.web_push.old_key_files
    return tuple(_read(directory, "web_push", "old_key_files", name, load_key, mend=mend) for name in names)


def vapid_key_file(directory: Path, settings: Settings) -> str:
    """What `[web_push] key_file` names, else the reference's file if it is there; empty: Web Push is off."""
    there = (directory / REFERENCE_VAPID_KEY).is_file()
    return settings.web_push.key_file or (REFERENCE_VAPID_KEY if there else "")


def load_vapid_keys(
    directory: Path,
) -> tuple[ec.EllipticCurvePrivateKey | None, tuple[ec.EllipticCurvePrivateKey, ...]]:
    """The VAPID key in force, None: Web Push is off; and the older ones. Raises ConfigError."""
    settings = load_settings(directory)
    if not (name := vapid_key_file(directory, settings)):
        return None, ()
    return _vapid_key(directory, name), _old_vapid_keys(directory, settings)


def _service_account(directory: Path, settings: Settings) -> ServiceAccount:
    """What `[fcm] service_account_file` holds. Raises ConfigError."""
    name, mend = settings.fcm.service_account_file, "give the JSON key of a service account from Google"
    return _read(directory, "fcm", "service_account_file", name, parse_service_account, mend=mend)


def _client_certificate(directory: Path, settings: Settings) -> ClientCertificate | None:
    """What `[apns] certificate_file` and `certificate_key_file` hold; None if they are not set. Raises ConfigError."""
    apns = settings.apns
    if not apns.certificate_file and not apns.certificate_key_file:
        return None
    names = {"certificate_file": apns.certificate_file, "certificate_key_file": apns.certificate_key_file}
    data: dict[str, bytes] = {}
    for key, name in names.items():
        if not name:
            raise ConfigError(f"{directory / CONFIG_FILE}: [apns] {key}: is missing; give both files, in PEM")
        same = key == "certificate_key_file" and name == apns.certificate_file
        data[key] = data["certificate_file"] if same else _read(directory, "apns", key, name, bytes)
    try:
        return ClientCertificate.parse(data["certificate_file"], data["certificate_key_file"])
    except ClientCertificateError as e:
        path = directory / names[e.setting]
        mend = "give the certificate from Apple and its key, in PEM"
        raise ConfigError(f"{directory / CONFIG_FILE}: [apns] {e.setting}: {path}: {e}; {mend}") from None


def _read(
    directory: Path, section: str, key: str, name: str, parse: Callable[[bytes], T], *, mend: str = "give a file"
) -> T:
    """A file that a setting names, parsed. Raises ConfigError."""
    path = directory / name
    where = f"{directory / CONFIG_FILE}: [{section}] {key}"
    try:
        return parse(path.read_bytes())
    except OSError as e:
        raise ConfigError(f"{where}: {unreadable(path, e, mend)}") from e
    except (KeyFileError, ServiceAccountError) as e:
        raise ConfigError(f"{where}: {path}: {e}; {mend}") from e


def _ca_files(directory: Path, settings: Settings, mistakes: Mistakes) -> Mapping[str, str]:
    """Those of the providers that are on."""
    names = {f"apns.{name}": host.ca_file for name, host in apns_hosts(settings).items()}
    if settings.fcm.service_account_file:
        names["fcm"] = settings.fcm.ca_file
    if vapid_key_file(directory, settings):
        names["web_push"] = settings.web_push.ca_file
    return MappingProxyType({s: mistakes.find(partial(_ca_file, directory, s, name)) for s, name in names.items()})


def _ca_file(directory: Path, section: str, name: str) -> str:
    """The CA bundle to check a push provider with. Raises ConfigError."""
    where = f"{directory / CONFIG_FILE}: [{section}] ca_file"
    if not name:
        if (default := default_ca_file()) is None:
            raise ConfigError(f"{where}: the system has no CA bundle; install ca-certificates or set it")
        return default
    path = directory / name
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ConfigError(f"{where}: {path}: holds no certificate; give a PEM bundle") from None
    except OSError as e:
        raise ConfigError(f"{where}: {unreadable(path, e, 'give a PEM bundle')}") from e
    return str(path)


def load_master_key(directory: Path, settings: Settings) -> MasterKey:
    """The key that the database is sealed with. Raises ConfigError, NotNowError (its command failed)."""
    store, file = settings.store, directory / CONFIG_FILE
    if store.master_key:
        try:
            return MasterKey.from_text(store.master_key)
        except SealingError as e:
            raise ConfigError(f"{file}: [store] master_key: {e}") from e
    if not store.master_key_command:
        return _master_key_of_file(directory, settings)
    where = f"{file}: [store] master_key_command"
    try:
        command = shlex.split(store.master_key_command)
    except ValueError as e:
        raise ConfigError(f"{where}: {str(e).lower()}; mend it") from None
    try:
        return MasterKey.from_command(command)
    except SealingError as e:
        # A program that is not there stays away; one that failed, a key service that is down say, may not.
        kind = ConfigError if isinstance(e.__cause__, OSError) or not command else NotNowError
        raise kind(f"{where}: {e}") from e


def _master_key_of_file(directory: Path, settings: Settings) -> MasterKey:
    """A new key is a cure only where nothing was sealed with another one."""
    where, path = f"{directory / CONFIG_FILE}: [store] master_key_file", directory / settings.store.master_key_file
    try:
        return MasterKey.from_file(path)
    except SealingError as e:
        error = e
    is_new = _is_new_store(directory, settings)
    new = f"make one: `umask 077; openssl rand -base64 32 >{path}`"
    cure = new if is_new else "restore it from your copy: what is in the store opens with no other key"
    if isinstance(error.__cause__, OSError):
        raise ConfigError(f"{where}: {unreadable(path, error.__cause__, cure)}") from error
    raise ConfigError(f"{where}: {error}" if is_new else f"{where}: {error}; {cure}") from error


def _is_new_store(directory: Path, settings: Settings) -> bool:
    """Whether nothing can be in it yet; of a Redis nobody knows without a look."""
    try:
        place = _store(directory, settings)
    except ConfigError:
        return False
    return isinstance(place, Path) and not place.exists()


def _store(directory: Path, settings: Settings) -> Path | RedisUrl:
    url = settings.store.url
    return parse_store(url, directory, f"{directory / CONFIG_FILE}: [store] url") if url else directory / DATABASE


def parse_store(url: str, directory: Path, where: str) -> Path | RedisUrl:
    """A store's URL, paths in it relative to `directory`. Raises ConfigError, which begins with `where`."""
    if is_redis_url(url):
        try:
            return parse_redis_url(url, directory)
        except StoreConflictError as e:
            text = str(e).removeprefix("the store's url ")
            raise ConfigError(f"{where}: {text}; mend it") from e
    path = url.removeprefix("sqlite:///")
    if path == url or not path:
        raise ConfigError(
            f"{where}: {url.partition(':')[0]}: must be sqlite:///PATH (sqlite:////PATH if absolute), or one of a Redis"
        )
    full = directory / path
    if not full.parent.is_dir():
        raise ConfigError(f"{where}: {unwritable(full.parent, '[store] url')}")
    if full.is_dir():
        raise ConfigError(f"{where}: {full}: is a folder; give a file")
    return full
