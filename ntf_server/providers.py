"""The push providers that the configuration turns on, and the engines that they push with."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from ntf_server.config import files as configuration
from ntf_server.config.files import Config, ConfigError
from ntf_server.push.apns.request import Apns, ProviderToken, generate_key
from ntf_server.push.fcm.oauth import AccessToken
from ntf_server.push.fcm.request import Fcm
from ntf_server.push.http import Endpoint, HttpEngine
from ntf_server.push.provider import NullProvider, PushProvider
from ntf_server.push.webpush.request import Vapid, WebPush
from ntf_server.store.records import PushKind
from smp_bridge.ntf import Provider

log = logging.getLogger(__name__)

APNS_SECTIONS: Final = {
    "production": Provider.APNS,
    "sandbox": Provider.APNS_SANDBOX,
    "test": Provider.APNS_TEST,
}
_STREAMS: Final = 1000  # that providers allow on a connection
_CHECK_TTL: Final = 3600  # seconds that a provider keeps a periodic push


class Providers:
    """Made in a running loop; must be closed. `table` is what the dispatcher takes; APNs null is always in it."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock
        self._settings = config.settings
        streams = config.settings.delivery.in_flight
        connections = max(2, -(-streams // _STREAMS))
        self._engine = HttpEngine(connections=connections, streams=streams)
        self._engines = [self._engine]
        self._apns_token: ProviderToken | None = None
        self.table: dict[Provider, PushProvider] = {Provider.APNS_NULL: NullProvider()}
        self._add_apns()
        if self._settings.fcm.service_account_file:
            self._add_fcm()
        if self._settings.web_push.key_file:
            # Endpoints of strangers: one that goes silent must not cost the others their connections.
            engine = HttpEngine(connections=connections, streams=streams)
            self._engines.append(engine)
            self._add_web_push(engine)

    @property
    def in_flight(self) -> dict[Provider, int]:
        """Where a section says how many pushes may be under way."""
        s = self._settings
        limits = dict.fromkeys(APNS_SECTIONS.values(), s.apns.in_flight)
        limits |= {Provider.FCM: s.fcm.in_flight, Provider.WEB_PUSH: s.web_push.in_flight}
        return {provider: limit for provider, limit in limits.items() if limit is not None}

    async def close(self) -> None:
        """Give up what is in flight."""
        for engine in self._engines:
            await engine.close()

    def reload(self) -> None:
        """Read the APNs key file again (SIGHUP); a bad one is logged, and the old key stays."""
        if self._apns_token is None or not self._settings.apns.key_file:
            return
        try:
            self._apns_token.use(configuration.apns_key(self._config.directory, self._settings))
            log.info("the APNs key was read again")
        except ConfigError as e:
            log.error("the APNs key was not replaced: %s", e)

    def _ttl(self) -> Mapping[PushKind, int]:
        delivery = self._settings.delivery
        return {
            PushKind.VERIFICATION: delivery.verification_ttl,
            PushKind.MESSAGES: delivery.message_ttl,
            PushKind.CHECK: _CHECK_TTL,
        }

    def _add_apns(self) -> None:
        apns, directory = self._settings.apns, self._config.directory
        hosts = configuration.apns_hosts(self._settings)
        if not hosts:
            return
        if not apns.certificate_file:
            # Without a key file only the test host is on: a mock that checks no signatures is content with any.
            key = configuration.apns_key(directory, self._settings) if apns.key_file else generate_key()
            self._apns_token = ProviderToken(key, apns.key_id or "test", apns.team_id or "test", self._clock)
        for section, host in hosts.items():
            endpoint = Endpoint(
                _url(host.host, host.port),
                configuration.ca_file(directory, f"apns.{section}", host.ca_file),
                timeout=self._settings.delivery.timeout,
                proxy=apns.proxy,
                client_cert=str(directory / apns.certificate_file) if apns.certificate_file else "",
                client_key=str(directory / apns.certificate_key_file) if apns.certificate_file else "",
            )
            provider = Apns(self._engine, endpoint, self._apns_token, apns.topic, self._ttl())
            self.table[APNS_SECTIONS[section]] = provider

    def _add_fcm(self) -> None:
        fcm, directory = self._settings.fcm, self._config.directory
        account = configuration.service_account(directory, self._settings)
        ca_file = configuration.ca_file(directory, "fcm", fcm.ca_file)

        def endpoint(url: str) -> Endpoint:
            timeout = self._settings.delivery.timeout
            return Endpoint(url, ca_file, timeout=timeout, http2_only=False, proxy=fcm.proxy)

        token = AccessToken(self._engine, endpoint(account.token_uri), account, self._clock)
        push_to = endpoint(_url(fcm.host, fcm.port))
        self.table[Provider.FCM] = Fcm(
            self._engine, push_to, token, account.project_id, ttl=self._ttl(), clock=self._clock
        )

    def _add_web_push(self, engine: HttpEngine) -> None:
        web_push, directory = self._settings.web_push, self._config.directory
        vapid = Vapid(configuration.vapid_key(directory, self._settings), web_push.contact, self._clock)
        ca_file = configuration.ca_file(directory, "web_push", web_push.ca_file)
        public_only = not self._settings.subscriber.allow_private_hosts

        def endpoint(origin: str) -> Endpoint:
            return Endpoint(
                origin,
                ca_file,
                timeout=self._settings.delivery.timeout,
                http2_only=False,
                proxy=web_push.proxy,
                public_only=public_only,
            )

        self.table[Provider.WEB_PUSH] = WebPush(engine, endpoint, vapid, ttl=self._ttl(), clock=self._clock)


def _url(host: str, port: int) -> str:
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
