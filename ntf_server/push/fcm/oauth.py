"""OAuth access tokens of a Google service account (RFC 7523), one for all pushes, renewed ahead of their expiry."""

import logging
import math
import time
import urllib.parse
from collections.abc import Callable
from typing import Final

import msgspec

from ntf_server.push import jose
from ntf_server.push.exchange import Endpoint, HttpFailure, HttpRequest, HttpResponse, HttpResult
from ntf_server.push.fcm.settings import ServiceAccount
from ntf_server.push.http import HttpEngine
from ntf_server.push.verdict import Again, Ours, Scope, Verdict
from ntf_server.push.words import clock_words, is_code, one_line

log = logging.getLogger(__name__)

SCOPE: Final = "https://www.googleapis.com/auth/firebase.messaging"
_GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_LIFETIME: Final = 3600  # seconds, of the assertion
_BACK: Final = 60  # seconds by which the assertion is dated back: clocks differ
_AHEAD: Final = 300  # seconds before the expiry at which a new token is asked for
_AGAIN: Final = 10  # seconds after which it is asked for again, while the old one is still good


Waiter = Callable[[str | None, Verdict | None], None]


class _Refusal(msgspec.Struct):
    """RFC 6749, section 5.2."""

    error: object = ""
    error_description: object = ""


class AccessToken:
    """The current access token. Used in the loop only; asks Google through the push engine, so never blocks."""

    def __init__(
        self, engine: HttpEngine, endpoint: Endpoint, account: ServiceAccount, clock: Callable[[], float] = time.time
    ) -> None:
        self._engine = engine
        self._endpoint = endpoint
        self._account = account
        self._clock = clock
        self._token: str | None = None
        self._expires_at = 0.0
        self._renew_at = 0.0
        self._renewing = False
        self._waiting: list[Waiter] = []

    def __repr__(self) -> str:
        return "AccessToken()"

    def get(self, then: Waiter) -> None:
        """Call `then` with the token, at once if there is a valid one; or with None and why there is none."""
        now = self._clock()
        if self._token is not None and now < self._expires_at:
            token = self._token
            if now >= self._renew_at:
                self._renew()
            then(token, None)
            return
        self._waiting.append(then)
        self._renew()

    def expire(self, token: str) -> None:
        """The provider does not take `token` any more."""
        if token == self._token:
            self._token = None

    def _renew(self) -> None:
        if self._renewing:
            return
        self._renewing = True
        form = urllib.parse.urlencode({"grant_type": _GRANT, "assertion": self._assertion()}).encode()
        headers = ("content-type: application/x-www-form-urlencoded",)
        self._engine.send([(HttpRequest(self._endpoint, "", headers, form, dated=True), self._renewed)])

    def _assertion(self) -> str:
        now = int(self._clock())
        header = {"typ": "JWT", "kid": self._account.key_id}
        claims = {
            "iss": self._account.client_email,
            "scope": SCOPE,
            "aud": self._account.token_uri,
            "iat": now - _BACK,
            "exp": now - _BACK + _LIFETIME,
        }
        return jose.sign(self._account.key, header, claims)

    def _renewed(self, answer: HttpResult) -> None:
        self._renewing = False
        failure = self._take(answer)
        if failure and self._token is not None:
            after = failure.after if isinstance(failure, Again) else None
            self._renew_at = self._clock() + max(_AGAIN, after or 0.0)
            log.warning("the access token of FCM was not renewed ahead of its expiry")
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then(None if failure else self._token, failure)

    def _take(self, answer: HttpResult) -> Verdict | None:
        """Keep the token that was granted; or say what the refusal means for pushes."""
        refused = judge(answer, self._clock())
        if refused is not None or not isinstance(answer, HttpResponse):
            return refused
        grant = _grant(answer.body)
        assert grant is not None  # or it were refused
        self._token, lifetime = grant
        self._expires_at = self._clock() + lifetime
        self._renew_at = self._expires_at - min(_AHEAD, lifetime / 2)
        return None


def judge(answer: HttpResult, now: float) -> Verdict | None:
    """What an answer means for the pushes that wait for a token; None: there is one in it."""
    if isinstance(answer, HttpFailure):
        return Again(f"OAuth: {answer}", Scope.PROVIDER)
    if answer.status == 429 or answer.status >= 500:
        return Again(f"OAuth: {answer.status}", Scope.PROVIDER, answer.retry_after)
    if answer.status != 200:
        return Ours(f"OAuth: {answer.status}{_why(answer, now)}")
    return None if _grant(answer.body) else Again("OAuth: the answer does not parse", Scope.PROVIDER)


def refusal(answer: HttpResponse) -> tuple[str, str]:
    """Google's (code, words) of an answer that is no grant, each empty if there is none."""
    try:
        told = msgspec.json.decode(answer.body, type=_Refusal)
    except (ValueError, RecursionError):
        return "", ""
    code = told.error if isinstance(told.error, str) and is_code(told.error) else ""
    return code, one_line(told.error_description)


def _why(answer: HttpResponse, now: float) -> str:
    """Google's own words, which hold no secret, and what its clock says of ours."""
    code, text = refusal(answer)
    skew = None if answer.date is None else answer.date - now
    clock = clock_words(skew, "Google") if skew is not None and abs(skew) > _BACK else ""
    return (f" {code}" if code else "") + "".join(f": {words}" for words in (text, clock) if words)


def _grant(body: bytes) -> tuple[str, float] | None:
    """(access token, seconds that it lives), if that is what it is."""
    try:
        grant = msgspec.json.decode(body, type=dict[str, object])
        token, lifetime = grant["access_token"], float(str(grant["expires_in"]))
    except (ValueError, KeyError, RecursionError):
        return None
    valid = isinstance(token, str) and token and token.isascii() and token.isprintable()
    return (token, lifetime) if valid and isinstance(token, str) and 0 < lifetime < math.inf else None
