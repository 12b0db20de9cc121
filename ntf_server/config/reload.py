"""A new configuration for a running relay: what differs, what of it can be swapped, and what needs a restart."""

import asyncio
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ntf_server.config import files
from ntf_server.config.files import Config
from ntf_server.config.mistakes import ConfigError
from ntf_server.config.settings import Limits, Settings
from ntf_server.config.source import CONFIG_FILE
from ntf_server.observe.events import Event, EventLog
from ntf_server.store.contract import StoreError

events = EventLog(__name__)


class Part(StrEnum):
    """What can take a new configuration while it runs."""

    LISTENER = "listener"  # the online certificate
    STORE = "store"  # the TLS files of a Redis
    MASTER_KEY = "master_key"  # of a database: it is looked whether it opens that
    APNS = "apns"
    FCM = "fcm"
    WEB_PUSH = "web_push"
    SUBSCRIBER = "subscriber"  # lists of servers, limits of subscriptions
    LIMITS = "limits"  # budgets of strangers
    CHECKS = "checks"
    LOG = "log"
    PAGE = "page"  # its token, and names by which it is asked


# Settings that a part can take; all others need a restart.
_SWAPPED: Final[Mapping[str, Part]] = {
    "store.master_key": Part.MASTER_KEY,
    "store.master_key_command": Part.MASTER_KEY,
    "store.master_key_file": Part.MASTER_KEY,
    "apns.key_file": Part.APNS,
    "apns.key_id": Part.APNS,
    "apns.team_id": Part.APNS,
    "apns.topic": Part.APNS,
    "apns.certificate_file": Part.APNS,
    "apns.certificate_key_file": Part.APNS,
    "fcm.service_account_file": Part.FCM,
    "web_push.key_file": Part.WEB_PUSH,
    "web_push.old_key_files": Part.WEB_PUSH,
    "web_push.contact": Part.WEB_PUSH,
    "web_push.allow_hosts": Part.WEB_PUSH,
    "subscriber.allow_servers": Part.SUBSCRIBER,
    "subscriber.deny_servers": Part.SUBSCRIBER,
    "subscriber.max_subscriptions_per_token": Part.SUBSCRIBER,
    "subscriber.max_subscriptions_per_server": Part.SUBSCRIBER,
    "delivery.checks": Part.CHECKS,
    **{f"limits.{key}": Part.LIMITS for key in Limits.__struct_fields__},
    "log.level": Part.LOG,
    "log.format": Part.LOG,
    "admin.token_file": Part.PAGE,
    "admin.hosts": Part.PAGE,
}
_IDENTITY: Final = "the server's identity"
_CERTIFICATE: Final = "the online certificate"
_MASTER_KEY: Final = "the master key"
_STORE_FILES: Final = "the TLS files of [store] url"
_DENIED: Final = "the networks of [subscriber] deny_servers, where names lead to them"

Commit = Callable[[], None]
Swap = Callable[[Config], Commit]
_PARTS: Final[Mapping[str, Part]] = {
    _CERTIFICATE: Part.LISTENER,
    _STORE_FILES: Part.STORE,
    _MASTER_KEY: Part.MASTER_KEY,
}


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a reload, by name. `error`: one line; nothing has changed then."""

    swapped: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"not changed: {self.error}"
        said = [f"in use now: {', '.join(self.swapped)}"] if self.swapped else []
        if self.needs_restart:
            said.append(f"restart to use it: {', '.join(self.needs_restart)}")
        return "; ".join(said) or "nothing differs"


@dataclass(frozen=True, slots=True)
class Changes:
    """`swapped`: names, by the part that takes them; `config`: what is in force then."""

    swapped: Mapping[Part, tuple[str, ...]]
    needs_restart: tuple[str, ...]
    config: Config


class Reloader:
    """Loads anew and hands out what differs: all of it, or nothing.

    `swaps`: each is given the configuration in force then, and gives what takes it into use, which cannot fail; it may
    refuse instead, by an error, and changes nothing itself. A part that is not in it needs a restart.
    """

    def __init__(
        self,
        config: Config,
        swaps: Mapping[Part, Swap],
        load: Callable[[Config], Config] = lambda c: files.load(c.directory, c.environ, running=c),
    ) -> None:
        self._config = config
        self._swaps = swaps
        self._load = load
        self._turn = asyncio.Lock()

    @property
    def config(self) -> Config:
        """What is in force."""
        return self._config

    async def reload(self) -> Report:
        """Read everything again; what is bad changes nothing. The outcome is logged as one line."""
        async with self._turn:
            report = await self._reload()
        events.tell(Event.CONFIG_REFUSED if report.error else Event.CONFIG_RELOADED, "reload: %s", report)
        return report

    async def _reload(self) -> Report:
        try:
            new = await asyncio.to_thread(partial(self._load, self._config))  # a master key's command may take long
        except ConfigError as e:
            return Report(error=str(e))
        changes = compare(self._config, new, self._swaps.keys())
        commits = []
        for part in (part for part in self._swaps if part in changes.swapped):
            try:
                commits.append(self._swaps[part](changes.config))
            except (OSError, StoreError) as e:  # which ssl.SSLError is, too
                where = f"{self._config.directory / CONFIG_FILE}: {', '.join(changes.swapped[part])}"
                return Report(error=f"{where}: {e}")
        for commit in commits:
            commit()
        self._config = changes.config
        swapped = [name for part in self._swaps for name in changes.swapped.get(part, ())]
        return Report(tuple(swapped), changes.needs_restart)


def compare(old: Config, new: Config, parts: Container[Part]) -> Changes:
    """What differs. `parts`: those that can take something new."""
    swapped: dict[Part, list[str]] = {}
    restart: list[str] = []
    fixed = {part for part in _MODES if _MODES[part](old) != _MODES[part](new)}  # on or off, by key or certificate
    differing = dict.fromkeys(_differing_settings(old.settings, new.settings))
    differing |= dict.fromkeys(_differing_content(old, new))
    for name in differing:
        part = _PARTS.get(name) or _SWAPPED.get(name)
        if part is None or part in fixed or part not in parts:
            restart.append(_shown(name))
        else:
            swapped.setdefault(part, []).append(_shown(name))
    merged = _merge(old, new, swapped.keys())
    return Changes({part: tuple(names) for part, names in swapped.items()}, tuple(restart), merged)


_MODES: Final[Mapping[Part, Callable[[Config], object]]] = {
    Part.APNS: lambda c: (c.apns_key is None, c.client_certificate is None),
    Part.FCM: lambda c: c.service_account is None,
    Part.WEB_PUSH: lambda c: c.vapid_key is None,
    # a page that is to be elsewhere after a restart must not lose its token where it is
    Part.PAGE: lambda c: c.page and (c.page.host, c.page.port, c.page.socket),
}


def _shown(name: str) -> str:
    section, dot, key = name.rpartition(".")
    return f"[{section}] {key}" if dot else name


def _differing_settings(old: Settings, new: Settings) -> Iterator[str]:
    for section in old.__struct_fields__:
        before, after = getattr(old, section), getattr(new, section)
        for key in before.__struct_fields__:
            if getattr(before, key) != getattr(after, key):
                yield f"{section}.{key}"


def _differing_content(old: Config, new: Config) -> Iterator[str]:
    """Of files that are named as before."""
    if old.credentials.key_hash != new.credentials.key_hash:
        yield _IDENTITY
    elif old.credentials.chain_pem != new.credentials.chain_pem:
        yield _CERTIFICATE
    if old.store == new.store and old.store_files != new.store_files:
        yield _STORE_FILES
    if old.master_key.key_id != new.master_key.key_id:
        yield _MASTER_KEY
    if old.network.denied != new.network.denied:
        yield _DENIED
    if _public(old.apns_key) != _public(new.apns_key):
        yield "apns.key_file"
    if old.client_certificate != new.client_certificate:
        yield "apns.certificate_file"
    if _account(old) != _account(new):
        yield "fcm.service_account_file"
    if _public(old.vapid_key) != _public(new.vapid_key):
        yield "web_push.key_file"
    if [*map(_public, old.old_vapid_keys)] != [*map(_public, new.old_vapid_keys)]:
        yield "web_push.old_key_files"
    if (old.page and old.page.token) != (new.page and new.page.token):
        yield "admin.token_file"


def _public(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None) -> bytes:
    """What tells private keys apart: they cannot be compared."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) if key else b""


def _account(config: Config) -> object:
    account = config.service_account
    if account is None:
        return None
    return account.project_id, account.client_email, account.key_id, account.token_uri, _public(account.key)


def _merge(old: Config, new: Config, parts: Container[Part]) -> Config:
    """The new values of what these parts take, the old ones of all else."""
    sections = {}
    for section in old.settings.__struct_fields__:
        before, after = getattr(old.settings, section), getattr(new.settings, section)
        keys = [k for k in before.__struct_fields__ if _SWAPPED.get(f"{section}.{k}") in parts]
        sections[section] = msgspec.structs.replace(before, **{k: getattr(after, k) for k in keys})
    merged = replace(old, settings=Settings(**sections))
    if Part.LISTENER in parts:
        merged = replace(merged, credentials=new.credentials)
    if Part.STORE in parts:
        merged = replace(merged, store_files=new.store_files)
    if Part.MASTER_KEY in parts:
        merged = replace(merged, master_key=new.master_key)
    if Part.APNS in parts:
        merged = replace(merged, apns_key=new.apns_key, client_certificate=new.client_certificate)
    if Part.FCM in parts:
        merged = replace(merged, service_account=new.service_account)
    if Part.WEB_PUSH in parts:
        merged = replace(merged, vapid_key=new.vapid_key, old_vapid_keys=new.old_vapid_keys, push_hosts=new.push_hosts)
    if Part.SUBSCRIBER in parts:
        merged = replace(merged, servers=new.servers, limits=new.limits)
    if Part.LIMITS in parts:
        merged = replace(merged, budgets=new.budgets)
    if Part.PAGE in parts:
        merged = replace(merged, page=new.page)
    return merged
