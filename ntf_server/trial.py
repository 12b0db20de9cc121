"""One push with the operator's own credentials, each step of it told: what `ntf-server push-test` does.

The push goes the way of the relay's: the same settings, folders of providers and engine. Only names, TCP and TLS are
tried apart before it, as libcurl says too little of what is in their way.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from msgspec.structs import replace

from ntf_server.config.files import Config
from ntf_server.config.source import CONFIG_FILE
from ntf_server.findings import Finding, left_out, warning, well, wrong
from ntf_server.providers import apns_settings, fcm_settings, web_push_settings
from ntf_server.push import cures
from ntf_server.push.apns import judge as apns
from ntf_server.push.apns.open import OpenApns
from ntf_server.push.apns.provider_token import ProviderToken
from ntf_server.push.exchange import Done, Endpoint, HttpFailure, HttpRequest, HttpResponse, HttpResult
from ntf_server.push.fcm import judge as fcm
from ntf_server.push.fcm import oauth
from ntf_server.push.fcm.open import OpenFcm
from ntf_server.push.fcm.request import only_validated
from ntf_server.push.front import Front, Refusal
from ntf_server.push.http import HttpEngine
from ntf_server.push.jose import generate_key
from ntf_server.push.names import Resolver
from ntf_server.push.verdict import Delivered, PushProvider, Verdict
from ntf_server.push.webpush import judge as web_push
from ntf_server.push.webpush.open import OpenWebPush, endpoint_of
from ntf_server.push.webpush.subscription import WebPushSubscription
from ntf_server.push.webpush.vapid import Vapid
from ntf_server.push.words import SKEW, clock_words, one_line
from ntf_server.reach import UnreachableError, connect, connect_through, host_of, resolve, tls_context, usable
from ntf_server.store.records import Claim, Lane, PushKind
from smp_bridge.ntf import DeviceToken, Provider

_HEX: Final = frozenset("0123456789abcdefABCDEF")
_WHAT: Final = "a silent push that has the app check for messages, and shows nothing"
_SILENT: Final = (
    "the provider took the connection and did not answer",
    "is something between, a firewall or a proxy, that drops what it should pass on? Else wait",
)


class OffError(Exception):
    """The provider is not configured. One line with the cure."""


class Heard(NamedTuple):
    """A request, what came of it, how many seconds that took, and how many the peer's clock is ahead; None: unknown."""

    request: HttpRequest
    answer: HttpResult
    seconds: float
    skew: float | None


class Listening(HttpEngine):
    """The relay's push engine, and what went through it. `amend`: what becomes of each request before it is sent."""

    def __init__(self, resolver: Resolver, amend: Callable[[HttpRequest], HttpRequest]) -> None:
        super().__init__(streams=1, resolver=resolver)
        self.heard: list[Heard] = []
        self._amend = amend

    def send(self, requests: Sequence[tuple[HttpRequest, Done]]) -> None:
        """See `HttpEngine`. The answer's `Date` is wanted each time."""
        amended = [(replace(self._amend(r), dated=True), done) for r, done in requests]
        super().send([(r, partial(self._hear, r, time.monotonic(), done)) for r, done in amended])

    def _hear(self, request: HttpRequest, began: float, done: Done, answer: HttpResult) -> None:
        date = answer.date if isinstance(answer, HttpResponse) else None
        skew = None if date is None else date - time.time()
        self.heard.append(Heard(request, answer, time.monotonic() - began, skew))
        done(answer)


@dataclass(frozen=True, slots=True)
class Way:
    """How a device is pushed to. `whose`: the provider, by name; `credentials`: findings about them; `endpoints`: all
    that are asked, the one of the push last; `open_way` gives provider and front; `words`: cures of its refusals;
    `dry`: what a dry run sends, None: it sends nothing.
    """

    whose: str
    credentials: tuple[Finding, ...]
    endpoints: tuple[Endpoint, ...]
    open_way: Callable[[HttpEngine], tuple[PushProvider, Front]]
    words: dict[str, cures.Meaning]
    dry: Callable[[HttpRequest], HttpRequest] | None = None
    own_host: str = ""


def find_way(config: Config, device: DeviceToken) -> Way:
    """Raises OffError."""
    if device.provider is Provider.FCM:
        return _fcm_way(config)
    return _web_push_way(config, device) if device.provider is Provider.WEB_PUSH else _apns_way(config, device)


def _apns_way(config: Config, device: DeviceToken) -> Way:
    settings = apns_settings(config, generate_key())
    endpoint = settings.hosts.get(device.provider) if settings else None
    if settings is None or endpoint is None:
        keys = "[apns.test] host" if device.provider is Provider.APNS_TEST else "[apns] key_file, key_id and team_id"
        raise OffError(f"{config.directory / CONFIG_FILE}: there is no way to devices of {device.provider}: set {keys}")
    found: list[Finding] = []
    if (certificate := config.client_certificate) is not None:
        end = f"{certificate.not_after:%Y-%m-%d}"
        found.append(well("credentials", f"client certificate of {certificate.name}, good until {end}"))
    elif settings.signing is not None:
        ids = f"key {settings.signing.key_id} of team {settings.signing.team_id}"
        made_up = "" if config.apns_key else "; there is no key_file, so that the key is made up: mocks take any"
        found.append(well("credentials", f"{ids}, topic {settings.topic}{made_up}"))
        ProviderToken(settings.signing).get()
        found.append(well("JWT", "made and signed (ES256); Apple takes it for an hour"))
    token = device.token.decode("latin-1")
    if device.provider is not Provider.APNS_TEST and (not set(token) <= _HEX or len(token) < 64):
        cure = "give what application(_:didRegisterForRemoteNotificationsWithDeviceToken:) gave, as hex"
        found.append(warning("device token", f"{len(token)} characters: Apple's have 64 hex digits or more", cure))

    def open_way(engine: HttpEngine) -> tuple[PushProvider, Front]:
        opened = OpenApns(settings, engine)
        return opened.providers[device.provider], opened.front

    return Way("Apple", tuple(found), (endpoint,), open_way, cures.APNS)


def _fcm_way(config: Config) -> Way:
    settings, file = fcm_settings(config), config.directory / CONFIG_FILE
    if settings is None:
        raise OffError(f"{file}: there is no way to devices of FC: set [fcm] service_account_file")
    account = settings.account
    text = f"service account {account.client_email}, key {account.key_id[:8]}…, project {account.project_id}"

    def open_way(engine: HttpEngine) -> tuple[PushProvider, Front]:
        opened = OpenFcm(settings, engine)
        return opened.providers[Provider.FCM], opened.front

    def dry(request: HttpRequest) -> HttpRequest:
        return request if request.endpoint == settings.token_endpoint else only_validated(request)

    endpoints = (settings.token_endpoint, settings.push_to)
    return Way("Google", (well("credentials", text),), endpoints, open_way, cures.FCM, dry)


def _web_push_way(config: Config, device: DeviceToken) -> Way:
    settings, file = web_push_settings(config), config.directory / CONFIG_FILE
    if settings is None:
        raise OffError(f"{file}: there is no way to devices of WP: set [web_push] key_file and contact")
    subscription = WebPushSubscription.parse(device.token)
    origin = subscription.origin
    vapid = Vapid(settings.keys[0], settings.contact)
    vapid.authorization(origin)
    found = (
        well("credentials", f"VAPID key {vapid.public_key[:12]}…, contact {settings.contact}"),
        well("JWT", f"made and signed for {origin} (VAPID, ES256)"),
    )

    def open_way(engine: HttpEngine) -> tuple[PushProvider, Front]:
        opened = OpenWebPush(settings, engine)
        return opened.providers[Provider.WEB_PUSH], opened.front

    return Way(
        subscription.host,
        found,
        (endpoint_of(settings, subscription),),
        open_way,
        cures.WEB_PUSH,
        own_host=config.settings.transport.host,
    )


class Trial:
    """One push. `steps` is called once; `said` then has what the provider answered, `400 BadDeviceToken` say, or empty.

    Raises OffError.
    """

    def __init__(self, config: Config, device: DeviceToken, *, dry: bool) -> None:
        self._config = config
        self._device = device
        self._dry = dry
        self._way = find_way(config, device)
        self.said = ""

    async def steps(self) -> AsyncIterator[Finding]:
        """Each as it is done, the last one is what came of it."""
        way, dry = self._way, self._dry
        for finding in way.credentials:
            yield finding
        resolver = Resolver(self._config.settings.transport.name_servers, own=way.own_host)
        engine = Listening(resolver, way.dry if dry and way.dry else _as_it_is)
        try:
            provider, front = way.open_way(engine)
            if (barred := _barred(front.refusal(self._device))) is not None:
                yield barred
                return
            for endpoint in way.endpoints:
                try:
                    async for finding in _reach(endpoint, resolver):
                        yield finding
                except UnreachableError as e:
                    host, _ = host_of(endpoint)
                    yield wrong(e.step, str(e) if host in str(e) else f"{host}: {e}", e.cure)
                    return
            if dry and way.dry is None:
                why = ": APNs has no dry run of its own" if way.words is cures.APNS else ""
                yield left_out("request", f"not sent{why}; without --dry-run it would be {_WHAT}")
                return
            verdict = await _push(provider, self._device)
            for finding in _told(way, self._device, engine.heard, verdict, dry=dry):
                yield finding
            self.said = _said(way, self._device.provider, engine.heard[-1]) if engine.heard else ""
        finally:
            await engine.close()


def _as_it_is(request: HttpRequest) -> HttpRequest:
    return request


def _barred(refusal: Refusal | None) -> Finding | None:
    if refusal is None:
        return None
    if refusal is Refusal.HOST:
        cure = "if the push service is yours, put its host into [web_push] allow_hosts"
        return wrong("device token", "its host is not on the public internet, or is our own: TNEW refuses it", cure)
    return wrong("device token", "it is none of this provider", "give it as the device registers it")


async def _reach(endpoint: Endpoint, resolver: Resolver) -> AsyncIterator[Finding]:
    """Raises UnreachableError."""
    if endpoint.proxy:
        yield well("connection", f"{endpoint.url}: {await connect_through(endpoint)}")
        return
    host, port = host_of(endpoint)
    addresses = usable(endpoint, await resolve(host, resolver))
    if addresses != (host,):
        yield well("name", f"{host}: {', '.join(addresses[:4])}{' and more' if len(addresses) > 4 else ''}")
    reached = await connect(addresses, port, tls_context(endpoint), host)
    if endpoint.http2_only and reached.alpn != "h2":
        cure = "is it the push provider that answers there? Something between may open TLS"
        yield warning("connection", f"{reached}: it did not agree to HTTP/2 (ALPN)", cure)
    else:
        yield well("connection", str(reached))


async def _push(provider: PushProvider, device: DeviceToken) -> Verdict:
    """Send one; the engine has a deadline for it."""
    claim = Claim(
        b"", 0, Lane(device.provider), device, b"", PushKind.CHECK, since=int(time.time()), push_id=os.urandom(16)
    )
    verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
    provider.send([claim], lambda _claim, told: verdict.set_result(told))
    return await verdict


def _told(way: Way, device: DeviceToken, heard: Sequence[Heard], verdict: Verdict, *, dry: bool) -> Iterator[Finding]:
    """What was asked and answered."""
    last = way.endpoints[-1]
    yield from _clock(heard, way.whose)
    for each in heard:
        if each.request.endpoint == last:
            yield well("request", _sent(each.request, dry=dry))
            yield _answer(way, device, each, dry=dry, taken=isinstance(verdict, Delivered) and each is heard[-1])
        else:
            yield _grant(each)
    if not heard:
        yield wrong("device token", "no request can be made of it", "give it as the device registers it")


def _sent(request: HttpRequest, *, dry: bool) -> str:
    ids = [h.partition(": ")[2] for h in request.headers if h.startswith("apns-id: ")]
    how = "sent with validate_only, so that Google judges it and passes nothing on" if dry else "sent"
    return f"{how}: {_WHAT}{f', id {ids[0]}' if ids else ''}"


def _clock(heard: Sequence[Heard], whose: str) -> Iterator[Finding]:
    """What an answer says of this machine's clock."""
    skews = [each.skew for each in heard if each.skew is not None]
    if skews and abs(skews[0]) > SKEW:
        yield warning("clock", clock_words(skews[0], whose), "set it: `timedatectl set-ntp true`")
    elif skews:
        yield well("clock", clock_words(skews[0], whose))


def _grant(heard: Heard) -> Finding:
    """What became of the access token."""
    refused = oauth.judge(heard.answer, time.time())
    if refused is None:
        return well("access token", f"granted after {heard.seconds * 1000:.0f} ms (OAuth)")
    return _refused("access token", heard, cures.OAUTH, *_oauth_words(heard.answer))


def _oauth_words(answer: HttpResult) -> tuple[str, str]:
    return oauth.refusal(answer) if isinstance(answer, HttpResponse) else ("", "")


def _answer(way: Way, device: DeviceToken, heard: Heard, *, dry: bool, taken: bool) -> Finding:
    if taken and isinstance(heard.answer, HttpResponse):
        what = "it would take it" if dry else "the provider took it, and wakes the device when it can be reached"
        return well("answer", f"{heard.answer.status} after {heard.seconds * 1000:.0f} ms: {what}")
    code, text = _own_words(device.provider, heard.answer)
    return _refused("answer", heard, way.words, code, text.replace(device.token.decode("latin-1"), "…"))


def _own_words(provider: Provider, answer: HttpResult) -> tuple[str, str]:
    """(a provider's word for what was wrong, what else it says)."""
    if not isinstance(answer, HttpResponse):
        return "", ""
    if provider is Provider.FCM:
        code, message, _ = fcm.error(answer)
        return code, one_line(message)
    if provider is Provider.WEB_PUSH:
        return ("another key", "") if web_push.is_for_another_key(answer) else (web_push.code(answer), "")
    reason, since = apns.error(answer)
    return reason, "" if since is None else f"since {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(since))}"


def _said(way: Way, provider: Provider, heard: Heard) -> str:
    if not isinstance(heard.answer, HttpResponse):
        return ""
    is_push = heard.request.endpoint == way.endpoints[-1]
    words = _own_words(provider, heard.answer) if is_push else oauth.refusal(heard.answer)
    return f"{heard.answer.status} {words[0]}".rstrip()


def _refused(name: str, heard: Heard, words: dict[str, cures.Meaning], code: str, text: str) -> Finding:
    answer, after = heard.answer, f"after {heard.seconds * 1000:.0f} ms"
    if isinstance(answer, HttpFailure):
        meaning, cure = _SILENT if answer.timeout else ("no answer came", "try again; if it lasts, look at the network")
        return wrong(name, f"{answer} {after}: {meaning}", cure)
    meaning, cure = cures.explain(words, answer.status, code)
    said = f"{answer.status} {code}".rstrip() + (f" ({text})" if text else "")
    return wrong(name, f"{said} {after}: {meaning}", cure)
