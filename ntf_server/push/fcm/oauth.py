"""OAuth access tokens of a Google service account (RFC 7523), one for all pushes, renewed ahead of their expiry."""

import json
import logging
import math
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ntf_server.push import jose
from ntf_server.push.http import Endpoint, HttpEngine, HttpFailure, HttpRequest, HttpResult
from ntf_server.push.provider import Permanent, Result, Retry, Scope

log = logging.getLogger(__name__)

SCOPE: Final = "https://www.googleapis.com/auth/firebase.messaging"
_GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_LIFETIME: Final = 3600  # seconds, of the assertion
_AHEAD: Final = 300  # seconds before the expiry at which a new token is asked for
_AGAIN: Final = 10  # seconds after which it is asked for again, while the old one is still good


class ServiceAccountError(ValueError):
    """The file is not a Google service account's key."""


class _File(msgspec.Struct):
    project_id: str
    client_email: str
    private_key: str
    private_key_id: str = ""
    token_uri: str = "https://oauth2.googleapis.com/token"  # noqa: S105


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """What the JSON file from Google holds."""

    project_id: str
    client_email: str
    key_id: str
    token_uri: str
    key: rsa.RSAPrivateKey = field(repr=False)

    @classmethod
    def parse(cls, data: bytes) -> "ServiceAccount":
        """Raises ServiceAccountError."""
        try:
            file = msgspec.json.decode(data, type=_File)
            key = load_pem_private_key(file.private_key.encode(), None)
        except (ValueError, TypeError) as e:  # msgspec's errors are ValueErrors
            raise ServiceAccountError("not a service account's JSON key") from e
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ServiceAccountError("its private_key is not an RSA key")
        if not file.token_uri.startswith("https://"):
            raise ServiceAccountError("its token_uri is not an https: URL")
        return cls(file.project_id, file.client_email, file.private_key_id, file.token_uri, key)


Waiter = Callable[[str | None, Result | None], None]


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
        self._engine.send([(HttpRequest(self._endpoint, "", headers, form), self._renewed)])

    def _assertion(self) -> str:
        now = int(self._clock())
        header = {"typ": "JWT", "kid": self._account.key_id}
        claims = {
            "iss": self._account.client_email,
            "scope": SCOPE,
            "aud": self._account.token_uri,
            "iat": now,
            "exp": now + _LIFETIME,
        }
        return jose.sign(self._account.key, header, claims)

    def _renewed(self, answer: HttpResult) -> None:
        self._renewing = False
        failure = self._take(answer)
        if failure and self._token is not None:
            after = failure.after if isinstance(failure, Retry) else None
            self._renew_at = self._clock() + max(_AGAIN, after or 0.0)
            log.warning("the access token of FCM was not renewed ahead of its expiry")
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then(None if failure else self._token, failure)

    def _take(self, answer: HttpResult) -> Result | None:
        """Keep the token that was granted; or say what the refusal means for pushes."""
        if isinstance(answer, HttpFailure):
            return Retry(f"OAuth: {answer}", Scope.PROVIDER)
        if answer.status == 429 or answer.status >= 500:
            return Retry(f"OAuth: {answer.status}", Scope.PROVIDER, answer.retry_after)
        if answer.status != 200:
            return Permanent(f"OAuth: {answer.status}: the service account is refused")
        try:
            grant = json.loads(answer.body)
            token, lifetime = grant["access_token"], float(grant["expires_in"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return Retry("OAuth: the answer does not parse", Scope.PROVIDER)
        valid = isinstance(token, str) and token and token.isascii() and token.isprintable()
        if not valid or not 0 < lifetime < math.inf:
            return Retry("OAuth: the answer does not parse", Scope.PROVIDER)
        self._token, self._expires_at = token, self._clock() + lifetime
        self._renew_at = self._expires_at - min(_AHEAD, lifetime / 2)
        return None
