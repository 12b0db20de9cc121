"""APNs over HTTP/2, with token or certificate authentication."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from msgspec.structs import replace

from ntf_server.push.apns.judge import EXPIRED, error, judge
from ntf_server.push.apns.provider_token import ProviderToken
from ntf_server.push.apns.request import is_device_token, request
from ntf_server.push.apns.settings import ApnsSettings
from ntf_server.push.exchange import OK, Endpoint, HttpResponse, HttpResult
from ntf_server.push.front import OneProvider
from ntf_server.push.http import HttpEngine
from ntf_server.push.verdict import AT_ONCE, Again, DeadToken, Delivered, OnVerdict, Ours, PushProvider, Scope
from ntf_server.store.records import Claim, Entry
from smp_bridge.encoding import NONCE_SIZE
from smp_bridge.ntf import InvalidReason, Provider

_MAX_WAITING: Final = 10_000  # refused pushes that wait for Apple's clock

_Held = tuple[Entry, ...]


class OpenApns:
    """APNs, opened. Implements `Opened`. `clock` gives Unix seconds."""

    def __init__(
        self,
        settings: ApnsSettings,
        engine: HttpEngine,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        token = ProviderToken(settings.signing, clock, monotonic) if settings.signing else None
        self._token = token
        self.front = OneProvider()
        self._apns = {
            provider: Apns(engine, endpoint, token, settings, clock) for provider, endpoint in settings.hosts.items()
        }

    @property
    def providers(self) -> Mapping[Provider, PushProvider]:
        """See `Opened`."""
        return self._apns

    def use(self, settings: ApnsSettings) -> None:
        """Push with these from now on: another key, certificate or topic; the hosts are those of the start."""
        if self._token and settings.signing:
            self._token.use(settings.signing)
        for provider, apns in self._apns.items():
            apns.use(settings, settings.hosts.get(provider))


class Apns:
    """One APNs host. Implements `PushProvider`. `token` None: the endpoint's client certificate authenticates."""

    at_once = AT_ONCE

    def __init__(
        self,
        engine: HttpEngine,
        endpoint: Endpoint,
        token: ProviderToken | None,
        settings: ApnsSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._endpoint = endpoint
        self._token = token
        self._topic = settings.topic
        self._ttl = settings.ttl
        self._clock = clock
        self._waiting: list[tuple[Claim, OnVerdict]] | None = None  # for Apple's clock, while it is asked for

    def use(self, settings: ApnsSettings, endpoint: Endpoint | None) -> None:
        """See `OpenApns.use`."""
        self._topic, self._ttl = settings.topic, settings.ttl
        self._endpoint = endpoint or self._endpoint

    def send(self, claims: Sequence[Claim], on_verdict: OnVerdict) -> None:
        """See `PushProvider`."""
        jwt = self._token.get() if self._token else ""
        endpoint, topic, ttl = self._endpoint, self._topic, self._ttl
        requests = []
        random = os.urandom(NONCE_SIZE * len(claims))  # at once: each call is a turn at Python's lock
        for i, claim in enumerate(claims):
            if not is_device_token(claim.device):
                on_verdict(claim, DeadToken(InvalidReason.BAD))
                continue
            nonce = random[i * NONCE_SIZE : (i + 1) * NONCE_SIZE]
            try:
                made, held = request(claim, nonce, endpoint, topic=topic, ttl=ttl, jwt=jwt)
            except ValueError as e:
                on_verdict(claim, Ours(str(e), Scope.TOKEN))
                continue
            requests.append((made, partial(self._done, claim, held, jwt, on_verdict)))
        self._engine.send(requests)

    def _done(self, claim: Claim, held: _Held, jwt: str, on_verdict: OnVerdict, answer: HttpResult) -> None:
        if answer is OK:
            on_verdict(claim, Delivered(held))
            return
        if self._is_expired(answer) and (self._token is None or not self._token.expire(jwt)):
            self._ask_for_the_time(claim, jwt, on_verdict)
            return
        verdict = judge(answer, claim.registered_at)
        on_verdict(claim, Delivered(held) if isinstance(verdict, Delivered) else verdict)

    def _is_expired(self, answer: HttpResult) -> bool:
        return isinstance(answer, HttpResponse) and answer.status == 403 and error(answer)[0] == EXPIRED

    def _ask_for_the_time(self, claim: Claim, jwt: str, on_verdict: OnVerdict) -> None:
        """A token that was just made is expired: one of our clocks is wrong. The same push once more, with an eye on
        Apple's; what is refused meanwhile waits for what it says.
        """
        if self._waiting is not None:
            if len(self._waiting) < _MAX_WAITING:
                self._waiting.append((claim, on_verdict))
            else:
                on_verdict(claim, Again(f"403 {EXPIRED}", Scope.PROVIDER))
            return
        self._waiting = []
        made, held = request(claim, os.urandom(NONCE_SIZE), self._endpoint, topic=self._topic, ttl=self._ttl, jwt=jwt)
        self._engine.send([(replace(made, dated=True), partial(self._told, claim, held, on_verdict))])

    def _told(self, claim: Claim, held: _Held, on_verdict: OnVerdict, answer: HttpResult) -> None:
        waiting, self._waiting = self._waiting or [], None
        date = answer.date if isinstance(answer, HttpResponse) else None
        skew = None if date is None else date - self._clock()
        verdict = judge(answer, claim.registered_at, renewable=False, skew=skew)
        on_verdict(claim, Delivered(held) if isinstance(verdict, Delivered) else verdict)
        for other, tell in waiting:
            tell(other, verdict if self._is_expired(answer) else Again(f"403 {EXPIRED}"))
