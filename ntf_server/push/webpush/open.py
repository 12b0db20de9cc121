"""Web Push: UnifiedPush distributors and browsers. Endpoints are chosen by strangers: see `Endpoint.public_only`."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from ntf_server.config.server_list import matches
from ntf_server.push.exchange import Endpoint, HttpRequest, HttpResult
from ntf_server.push.front import Refusal
from ntf_server.push.http import HttpEngine
from ntf_server.push.verdict import DeadToken, Delivered, OnVerdict, Ours, PushProvider, Scope
from ntf_server.push.webpush.judge import is_for_another_key, judge
from ntf_server.push.webpush.request import request
from ntf_server.push.webpush.settings import WebPushSettings
from ntf_server.push.webpush.subscription import WebPushSubscription
from ntf_server.push.webpush.vapid import Vapid
from ntf_server.store.records import Claim, Entry
from smp_bridge.encoding import ParseError
from smp_bridge.network import is_own_ip, is_public_host
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider

_MAX_ENDPOINTS: Final = 1000  # kept ready: the engine knows an endpoint that is the same object at once

_Held = tuple[Entry, ...]
OnKey = Callable[[Claim, bytes], None]


class OpenWebPush:
    """Web Push, opened. Implements `Opened`. `clock` gives Unix seconds; `on_key`: see `WebPush`."""

    def __init__(
        self,
        settings: WebPushSettings,
        engine: HttpEngine,
        clock: Callable[[], float] = time.time,
        on_key: OnKey = lambda _claim, _key_id: None,
    ) -> None:
        self._web_push = WebPush(settings, engine, clock, on_key)
        self.front = WebPushFront(self._web_push)

    @property
    def providers(self) -> Mapping[Provider, PushProvider]:
        """See `Opened`."""
        return {Provider.WEB_PUSH: self._web_push}

    @property
    def keys(self) -> Mapping[bytes, str]:
        """VAPID: public keys by id, the one in force first."""
        return self._web_push.keys

    def use(self, settings: WebPushSettings) -> None:
        """Push with these from now on."""
        self._web_push.use(settings)


class WebPushFront:
    """Implements `Front`."""

    def __init__(self, web_push: "WebPush") -> None:
        self._web_push = web_push

    @property
    def key_id(self) -> bytes:
        """See `Front`."""
        return self._web_push.key_id

    def refusal(self, device: DeviceToken) -> Refusal | None:
        """See `Front`."""
        try:
            host = WebPushSubscription.parse(device.token).host
        except ParseError:
            return Refusal.SYNTAX
        return None if self._web_push.may_be_at(host) else Refusal.HOST

    def origin(self, device: DeviceToken) -> str:
        """See `Front`; of a token that `refusal` does not refuse as none."""
        try:
            return WebPushSubscription.parse(device.token).origin
        except ParseError:
            return ""


class WebPush:
    """All push services. Implements `PushProvider`. `on_key` hears of a claim's subscription that it is for another
    VAPID key than was known, by that one's id: a push service took a push that it signed.
    """

    at_once = 16  # each takes a key agreement: 0.1 ms

    def __init__(
        self, settings: WebPushSettings, engine: HttpEngine, clock: Callable[[], float], on_key: OnKey
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._on_key = on_key
        self._vapids: dict[bytes, Vapid] = {}  # by key id, the one in force first
        self._endpoints: OrderedDict[str, Endpoint] = OrderedDict()
        self._contact = ""
        self.use(settings)

    def use(self, settings: WebPushSettings) -> None:
        """See `OpenWebPush.use`."""
        made = [Vapid(key, settings.contact, self._clock) for key in settings.keys]
        known = self._vapids if settings.contact == self._contact else {}
        self._vapids = {v.key_id: known.get(v.key_id, v) for v in made}
        self._settings, self._contact = settings, settings.contact
        self._endpoints.clear()

    @property
    def key_id(self) -> bytes:
        """Of the VAPID key in force."""
        return next(iter(self._vapids))

    @property
    def keys(self) -> Mapping[bytes, str]:
        """Public keys by id, the one in force first."""
        return {key_id: vapid.public_key for key_id, vapid in self._vapids.items()}

    def may_be_at(self, host: str) -> bool:
        """Whether a push service may have this host. Where a name leads is looked at when it is connected to."""
        s = self._settings
        if matches(host, s.allow_hosts):
            return True
        return is_public_host(host) and host.rstrip(".") != s.own_host.lower().rstrip(".") and not _is_own(host)

    def send(self, claims: Sequence[Claim], on_verdict: OnVerdict) -> None:
        """See `PushProvider`."""
        requests = []
        for claim in claims:
            vapids = self._order(claim.vapid_key)
            try:
                made, held = self._request(claim, vapids[0])
            except ParseError:
                on_verdict(claim, DeadToken(InvalidReason.BAD))
                continue
            except ValueError as e:
                on_verdict(claim, Ours(str(e), Scope.TOKEN))
                continue
            requests.append((made, partial(self._done, claim, held, vapids, on_verdict)))
        self._engine.send(requests)

    def _order(self, registered: bytes) -> tuple[Vapid, ...]:
        """Keys in the order in which they are tried: first the one that was in force at the registration."""
        vapids = tuple(self._vapids.values())
        first = self._vapids.get(registered, vapids[0])
        return vapids if first is vapids[0] else (first, *(v for v in vapids if v is not first))

    def _request(self, claim: Claim, vapid: Vapid) -> tuple[HttpRequest, _Held]:
        subscription = WebPushSubscription.parse(claim.device.token)
        endpoint = self._endpoint(subscription)
        authorization = vapid.authorization(subscription.origin)
        ttl, now = self._settings.ttl, int(self._clock())
        return request(claim, subscription, endpoint, ttl=ttl, authorization=authorization, now=now)

    def _endpoint(self, subscription: WebPushSubscription) -> Endpoint:
        origin = subscription.origin
        endpoint = self._endpoints.get(origin)
        if endpoint is None:
            self._endpoints[origin] = endpoint = endpoint_of(self._settings, subscription)
            if len(self._endpoints) > _MAX_ENDPOINTS:
                self._endpoints.popitem(last=False)
        return endpoint

    def _done(
        self, claim: Claim, held: _Held, vapids: tuple[Vapid, ...], on_verdict: OnVerdict, answer: HttpResult
    ) -> None:
        """`vapids`: the one that signed, and those that were not tried yet."""
        others = vapids[1:]
        if others and is_for_another_key(answer):
            made, held = self._request(claim, others[0])
            self._engine.send([(made, partial(self._done, claim, held, others, on_verdict))])
            return
        verdict = judge(answer)
        if isinstance(verdict, Delivered):
            verdict = Delivered(held)
            if vapids[0].key_id != claim.vapid_key:
                self._on_key(claim, vapids[0].key_id)
        on_verdict(claim, verdict)


def endpoint_of(s: WebPushSettings, subscription: WebPushSubscription) -> Endpoint:
    """Of a subscription's push service."""
    networks = tuple(p for p in s.allow_hosts if not isinstance(p, str))
    public_only = not matches(subscription.host, s.allow_hosts)
    return replace(s.endpoint, url=subscription.origin, public_only=public_only, allowed=networks)


def _is_own(host: str) -> bool:
    """Whether a host is an IP address of this machine."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return is_own_ip(host)
