"""FCM, HTTP v1, for one Firebase project."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ntf_server.push.exchange import OK, HttpResult
from ntf_server.push.fcm.judge import judge, refuses_access_token
from ntf_server.push.fcm.oauth import AccessToken
from ntf_server.push.fcm.request import is_device_token, path, request
from ntf_server.push.fcm.settings import FcmSettings
from ntf_server.push.front import OneProvider
from ntf_server.push.http import HttpEngine
from ntf_server.push.verdict import AT_ONCE, Again, DeadToken, Delivered, OnVerdict, Ours, PushProvider, Scope, Verdict
from ntf_server.store.records import Claim, Entry
from smp_bridge.ntf import InvalidReason, Provider


class OpenFcm:
    """FCM, opened. Implements `Opened`. `clock` gives Unix seconds."""

    def __init__(self, settings: FcmSettings, engine: HttpEngine, clock: Callable[[], float] = time.time) -> None:
        self._fcm = Fcm(settings, engine, clock)
        self.front = OneProvider()

    @property
    def providers(self) -> Mapping[Provider, PushProvider]:
        """See `Opened`."""
        return {Provider.FCM: self._fcm}

    def use(self, settings: FcmSettings) -> None:
        """Push with these from now on: another service account is asked for its own access token."""
        self._fcm.use(settings)


class Fcm:
    """FCM for one Firebase project. Implements `PushProvider`."""

    at_once = AT_ONCE

    def __init__(self, settings: FcmSettings, engine: HttpEngine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock
        self._settings = settings
        self._access_token = AccessToken(engine, settings.token_endpoint, settings.account, clock)
        self._path = path(settings.account.project_id)
        self._refused = ""  # the access token that was refused last, until one is taken

    def use(self, settings: FcmSettings) -> None:
        """See `OpenFcm.use`."""
        before, self._settings = self._settings, settings
        self._path = path(settings.account.project_id)
        if _identity(before) != _identity(settings):
            self._access_token = AccessToken(self._engine, settings.token_endpoint, settings.account, self._clock)
            self._refused = ""

    def send(self, claims: Sequence[Claim], on_verdict: OnVerdict) -> None:
        """See `PushProvider`."""
        self._access_token.get(partial(self._send, list(claims), on_verdict))

    def _send(self, claims: Sequence[Claim], on_verdict: OnVerdict, token: str | None, failure: Verdict | None) -> None:
        if token is None:
            for claim in claims:
                on_verdict(claim, failure or Again("no access token", Scope.PROVIDER))
            return
        requests = []
        settings, now = self._settings, int(self._clock())
        for claim in claims:
            if not is_device_token(claim.device):
                on_verdict(claim, DeadToken(InvalidReason.BAD))
                continue
            try:
                made, held = request(claim, settings.push_to, self._path, ttl=settings.ttl, token=token, now=now)
            except ValueError as e:
                on_verdict(claim, Ours(str(e), Scope.TOKEN))
                continue
            requests.append((made, partial(self._done, claim, held, token, on_verdict)))
        self._engine.send(requests)

    def _done(
        self, claim: Claim, held: tuple[Entry, ...], token: str, on_verdict: OnVerdict, answer: HttpResult
    ) -> None:
        verdict = Delivered() if answer is OK else judge(answer, renewed=self._refused not in {"", token})
        if isinstance(verdict, Delivered):
            verdict = Delivered(held)
            if token != self._refused:
                self._refused = ""
        elif refuses_access_token(answer):
            self._refused = token
            self._access_token.expire(token)
        on_verdict(claim, verdict)


def _identity(settings: FcmSettings) -> tuple[object, ...]:
    account = settings.account
    numbers = account.key.private_numbers()
    return account.project_id, account.client_email, account.key_id, numbers, settings.token_endpoint
