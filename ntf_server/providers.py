"""The push providers that the configuration turns on, and the engines that they push with."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from ntf_server.config.contradictions import apns_hosts
from ntf_server.config.files import Config
from ntf_server.config.settings import Settings
from ntf_server.push import jose
from ntf_server.push.apns import settings as apns
from ntf_server.push.apns.open import OpenApns
from ntf_server.push.apns.settings import ApnsSettings, SigningKey
from ntf_server.push.exchange import Endpoint
from ntf_server.push.fcm import settings as fcm
from ntf_server.push.fcm.open import OpenFcm
from ntf_server.push.fcm.settings import FcmSettings
from ntf_server.push.front import Front, OneProvider
from ntf_server.push.http import HttpEngine
from ntf_server.push.names import Resolver
from ntf_server.push.verdict import NullProvider, PushProvider
from ntf_server.push.webpush import settings as web_push
from ntf_server.push.webpush.open import OnKey, OpenWebPush
from ntf_server.push.webpush.settings import WebPushSettings
from ntf_server.store.clock import since_boot
from ntf_server.store.records import Claim, PushKind
from smp_bridge.ntf import DeviceToken, Provider

_CHECK_TTL: Final = 3600  # seconds that a provider keeps a periodic push
_MAX_CONNECTIONS: Final = 32  # to one host
_MIN_CONNECTIONS: Final = 2


class Opened(Protocol):
    """A provider's folder, opened. Each has in `open.py` a class of this shape, made of its settings and an engine.

    `use(settings)` takes up another key, account or certificate.
    """

    @property
    def providers(self) -> Mapping[Provider, PushProvider]:
        """The ways to devices that it gives, by the provider of their device tokens."""
        ...

    @property
    def front(self) -> Front:
        """What is asked of it before a device token is taken."""
        ...


class _OpenNull:
    """APNs null. Implements `Opened`."""

    def __init__(self) -> None:
        self.providers: Mapping[Provider, PushProvider] = {Provider.APNS_NULL: NullProvider()}
        self.front: Front = OneProvider()


class Providers:
    """Made in a running loop; must be closed. APNs null is always there.

    `table`: what the dispatcher takes; `fronts`: what `commands` asks about device tokens; both by provider. Web Push
    has an engine of its own: endpoints of strangers share nothing with the others. `on_vapid_key`: see `WebPush`.
    """

    def __init__(
        self,
        config: Config,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = since_boot,
        on_vapid_key: OnKey = lambda _claim, _key_id: None,
    ) -> None:
        self._settings = config.settings
        self._any_key = jose.generate_key()
        name_servers = config.settings.transport.name_servers
        engine = HttpEngine(streams=self._streams(Provider.APNS, Provider.FCM), resolver=Resolver(name_servers))
        self._engines = [engine]
        opened: list[Opened] = [_OpenNull()]
        self._apns: OpenApns | None = None
        self._fcm: OpenFcm | None = None
        self._web_push: OpenWebPush | None = None
        if (of_apns := apns_settings(config, self._any_key)) is not None:
            self._apns = OpenApns(of_apns, self._engines[0], clock, steady)
            opened.append(self._apns)
        if (of_fcm := fcm_settings(config)) is not None:
            self._fcm = OpenFcm(of_fcm, self._engines[0], clock)
            opened.append(self._fcm)
        if (of_web_push := web_push_settings(config)) is not None:
            names = Resolver(name_servers, own=of_web_push.own_host)
            self._engines.append(HttpEngine(streams=self._streams(Provider.WEB_PUSH), resolver=names))
            self._web_push = OpenWebPush(of_web_push, self._engines[1], clock, on_vapid_key)
            opened.append(self._web_push)
        self.fronts: Mapping[Provider, Front] = {p: each.front for each in opened for p in each.providers}
        self.table: Mapping[Provider, PushProvider] = {p: way for o in opened for p, way in o.providers.items()}

    def _streams(self, *providers: Provider) -> int:
        """How many requests an engine may have under way: as many as the largest of its lanes."""
        return max(in_flight(self._settings, p) for p in providers)

    @property
    def in_flight(self) -> dict[Provider, int]:
        """How many pushes each provider may have under way."""
        return {provider: in_flight(self._settings, provider) for provider in self.table}

    @property
    def failed(self) -> list[asyncio.Future[None]]:
        """One for each engine: done, with the error, if it ended by itself."""
        return [engine.failed for engine in self._engines]

    def use(self, config: Config) -> None:
        """Take up keys, accounts and certificates of a new configuration; what was off or on stays so."""
        if self._apns is not None and (of_apns := apns_settings(config, self._any_key)) is not None:
            self._apns.use(of_apns)
        if self._fcm is not None and (of_fcm := fcm_settings(config)) is not None:
            self._fcm.use(of_fcm)
        if self._web_push is not None and (of_web_push := web_push_settings(config)) is not None:
            self._web_push.use(of_web_push)

    @property
    def vapid_keys(self) -> Mapping[bytes, str]:
        """Public keys by id, the one in force first; none where Web Push is off."""
        return self._web_push.keys if self._web_push is not None else {}

    def service(self, claim: Claim) -> str:
        """The push service of a claim, in words, where a provider has many; else empty."""
        return self.origin(claim.device)

    def origin(self, device: DeviceToken) -> str:
        """The same of a device."""
        return self.fronts[device.provider].origin(device)

    async def close(self) -> None:
        """Give up what is in flight."""
        for engine in self._engines:
            await engine.close()


def in_flight(settings: Settings, provider: Provider) -> int:
    """How many pushes a provider may have under way."""
    sections = {Provider.FCM: settings.fcm.in_flight, Provider.WEB_PUSH: settings.web_push.in_flight}
    own = sections.get(provider, settings.apns.in_flight)
    return settings.delivery.in_flight if own is None else own


def _connections(settings: Settings, provider: Provider, streams: int) -> int:
    return min(max(_MIN_CONNECTIONS, -(-in_flight(settings, provider) // streams)), _MAX_CONNECTIONS)


def _ttl(settings: Settings) -> Mapping[PushKind, int]:
    delivery = settings.delivery
    return {
        PushKind.VERIFICATION: delivery.verification_ttl,
        PushKind.MESSAGES: delivery.provider_ttl,
        PushKind.CHECK: _CHECK_TTL,
    }


def apns_settings(config: Config, any_key: EllipticCurvePrivateKey) -> ApnsSettings | None:
    """What APNs is pushed to with; None: it is off.

    Without a key only the test host is on: a mock that checks no signatures is content with `any_key`.
    """
    s, certificate = config.settings.apns, config.client_certificate
    hosts = apns_hosts(config.settings)
    if not hosts:
        return None
    signing = SigningKey(config.apns_key or any_key, s.key_id or "test", s.team_id or "test")
    endpoints = {
        apns.SECTIONS[section]: Endpoint(
            _url(host.host, host.port),
            config.ca_files[f"apns.{section}"],
            timeout=config.settings.delivery.timeout,
            proxy=s.proxy,
            client_cert=certificate.chain if certificate else b"",
            client_key=certificate.key if certificate else b"",
            streams=apns.STREAMS,
            connections=_connections(config.settings, Provider.APNS, apns.STREAMS),
            ends=apns.CONNECTION_ENDS,
        )
        for section, host in hosts.items()
    }
    return ApnsSettings(endpoints, s.topic, None if certificate else signing, _ttl(config.settings))


def fcm_settings(config: Config) -> FcmSettings | None:
    """What FCM is pushed to with; None: it is off."""
    s, account = config.settings.fcm, config.service_account
    if account is None:
        return None
    push_to = Endpoint(
        _url(s.host, s.port),
        config.ca_files["fcm"],
        timeout=config.settings.delivery.timeout,
        http2_only=False,
        proxy=s.proxy,
        streams=fcm.STREAMS,
        connections=_connections(config.settings, Provider.FCM, fcm.STREAMS),
    )
    return FcmSettings(account, push_to, replace(push_to, url=account.token_uri), _ttl(config.settings))


def web_push_settings(config: Config) -> WebPushSettings | None:
    """What push services are pushed to with; None: Web Push is off."""
    s, key = config.settings.web_push, config.vapid_key
    if key is None:
        return None
    endpoint = Endpoint(
        "",
        config.ca_files["web_push"],
        timeout=config.settings.delivery.timeout,
        http2_only=False,
        proxy=s.proxy,
        streams=web_push.STREAMS,
        connections=_connections(config.settings, Provider.WEB_PUSH, web_push.STREAMS),
    )
    keys = (key, *config.old_vapid_keys)
    own = config.settings.transport.host
    return WebPushSettings(keys, s.contact, endpoint, _ttl(config.settings), config.push_hosts, own)


def _url(host: str, port: int) -> str:
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
