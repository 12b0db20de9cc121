"""Apple, Google and the push services of strangers in virtual time, and the way to them.

A host takes requests, hands pushes to devices, and answers after a while; or it does what real ones do on bad days.
What a host answers is the truth of its side; the relay is not told what went wrong.
"""

import json
import urllib.parse
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from random import Random
from typing import Final

from ntf_server.testing.jwt import Jwt
from ntf_server.testing.provider_token import ProviderTokens
from ntf_server.testing.vapid import VapidTokens
from sim.clock import WallClock
from sim.devices import Address
from sim.http import Answer, Lost, Request, Sent, TimedOut, Unreachable
from sim.loop import VirtualLoop
from sim.trace import Trace
from smp_bridge.ntf import Provider

_OAUTH_SKEW: Final = 60  # seconds that Google lets an assertion be ahead
_JWT_PERIOD: Final = 20 * 60  # seconds in which Apple wants to see one provider token


class Host(ABC):
    """One push service. `trouble`: what is wrong with it now, one of `troubles` or empty.

    `flaky`: chance of a fault of a single request. `well_since`: when the last trouble was over.
    """

    troubles: tuple[str, ...] = ("refused", "tarpit", "errors", "bad_connection", "busy")
    refusals: tuple[str, ...] = ()  # of these: what refuses all that we send, for a fault of ours

    def __init__(self, name: str, loop: VirtualLoop, clock: WallClock, rng: Random, trace: Trace) -> None:
        self.name = name
        self.trouble = ""
        self.flaky = 0.0
        self.slowness = rng.choice([0.0, 0.0, 0.5, 2.0])
        self.well_since = loop.time()
        self.addresses: dict[bytes, Address] = {}
        self.refused: deque[float] = deque()  # when requests came in the present trouble
        self._loop = loop
        self._clock = clock
        self._rng = rng
        self._trace = trace
        self._bad_connections = 0
        self._told = False

    def begin(self, trouble: str, seconds: float, connections: int) -> None:
        """A bad time begins; `connections`: how many there have been, which may be what is bad."""
        self.trouble, self._bad_connections, self._told = trouble, connections, False
        self.refused.clear()
        self._trace.note(self.name, "begins", trouble, f"{seconds:.0f}s")
        self._loop.in_world(seconds, self.mend)

    def mend(self) -> None:
        """It is over."""
        if self.trouble:
            self._trace.note(self.name, "is well again")
            self.trouble = ""
            self.well_since = self._loop.time()

    def receive(self, request: Request) -> tuple[float, Answer]:
        """What becomes of a request, and after how many seconds."""
        delay = self._rng.uniform(0.005, 0.06) + self._rng.random() ** 6 * 0.4
        answer = self._troubled(request) or self._flaky(request)
        if answer is None:
            return delay, self._take(request)
        if isinstance(answer, TimedOut):
            return request.timeout, answer
        return delay, answer

    def way(self) -> float:
        """Seconds that a request is on its way."""
        return 0.01 + self.slowness * self._rng.random()

    def date(self) -> float:
        """What it says in `Date`."""
        return self._clock.truth()

    def address_of(self, request: Request) -> Address | None:
        """Whom a push is for."""
        return self.addresses.get(self.name_in(request))

    def name_in(self, request: Request) -> bytes:
        """By what its addresses are known."""
        return request.path.rpartition("/")[2].encode()

    def _troubled(self, request: Request) -> Answer | None:
        if not self.trouble or (self.trouble == "bad_connection" and request.connection > self._bad_connections):
            return None
        if not self._told:
            self._told = True
            self._trace.fault(f"{self.kind}:{self.trouble}", self.name)
        self.refused.append(self._loop.time())
        return self._in_trouble(request)

    def _in_trouble(self, request: Request) -> Answer:
        match self.trouble:
            case "refused":
                return Unreachable()
            case "tarpit":
                return TimedOut()
            case "busy":
                return self.error(429, "", retry_after=float(self._rng.choice([1, 5, 30, 60])))
            case "bad_connection":
                return self.broken()
        return self.error(self._rng.choice([500, 502, 503]), "")

    def _flaky(self, request: Request) -> Answer | None:
        if self._rng.random() >= self.flaky:
            return None
        kind = self._rng.choice(["lost_before", "lost_answer", "late_answer", "one_500", "one_429"])
        self._trace.fault(f"{self.kind}:{kind}", self.name)
        match kind:
            case "lost_before":
                return Lost()
            case "lost_answer":
                self._take(request)
                return Lost()
            case "late_answer":
                self._take(request)
                return TimedOut()
            case "one_500":
                return self.error(500, "")
        return self.error(429, "", retry_after=float(self._rng.choice([1, 3, 20])))

    def _push_to(self, address: Address, data: Mapping[str, object] | bytes) -> None:
        """Hand a push to its device."""
        device = address.device
        if address.replaced:
            self._trace.note(device, "would get a push at an old address")
            return
        address.delivered = True
        try:
            what = device.take_sealed(data) if isinstance(data, bytes) else device.take(data)
        except ValueError as e:
            self._trace.violated(device, "got a push that it cannot read:", e)
            return
        device.pushed_at = self._loop.time()
        if what == "check":
            device.checked_at = self._loop.time()
        self._trace.note(device, "gets", what)

    def _failing(self, address: Address) -> bool:
        return self._loop.time() < address.failing_until

    @property
    @abstractmethod
    def kind(self) -> str:
        """A word for the fault's name."""

    @abstractmethod
    def error(self, status: int, reason: str, retry_after: float | None = None) -> Sent:
        """An error in the service's words."""

    @abstractmethod
    def broken(self) -> Sent:
        """What a connection answers that has had it."""

    @abstractmethod
    def _take(self, request: Request) -> Sent:
        """Take a push."""


class ApnsHost(Host):
    """Apple. Looks at provider tokens with its own clock."""

    kind = "apns"
    troubles = (*Host.troubles, "bad_key", "wrong_topic")
    refusals = ("bad_key",)

    def __init__(self, name: str, loop: VirtualLoop, clock: WallClock, rng: Random, trace: Trace) -> None:
        super().__init__(name, loop, clock, rng, trace)
        self._tokens = ProviderTokens(clock=clock.truth)
        self._seen: dict[str, tuple[str, float]] = {}  # provider token to the life and the time that it came first

    def receive(self, request: Request) -> tuple[float, Answer]:
        """See `Host`."""
        self._watch(request.headers.get("authorization", ""), request.life)
        return super().receive(request)

    def error(self, status: int, reason: str, retry_after: float | None = None) -> Sent:
        """See `Host`."""
        names = {429: "TooManyRequests", 500: "InternalServerError", 503: "ServiceUnavailable"}
        return Sent(status, json.dumps({"reason": reason or names.get(status, "InternalServerError")}), retry_after)

    def broken(self) -> Sent:
        """See `Host`."""
        return self.error(*self._rng.choice([(500, "InternalServerError"), (503, "Shutdown"), (400, "IdleTimeout")]))

    def _in_trouble(self, request: Request) -> Answer:
        if self.trouble == "bad_key":
            return self.error(403, "InvalidProviderToken")
        if self.trouble == "wrong_topic":
            return self.error(400, self._rng.choice(["BadDeviceToken", "DeviceTokenNotForTopic"]))
        return super()._in_trouble(request)

    def _take(self, request: Request) -> Sent:
        authorization = request.headers.get("authorization")
        if refusal := self._tokens.refusal(authorization, request.connection):
            status, reason = refusal
            self._trace.fault(f"apns:{reason}", self.name)
            return self.error(status, reason)
        address = self.address_of(request)
        if address is None:
            return self.error(400, "BadDeviceToken")
        if self._failing(address):
            self._trace.fault("apns:failing_token")
            return self.error(500, "InternalServerError")
        if address.gone_at is not None:
            self._trace.fault("apns:unregistered")
            since = int((self._clock.truth() - (self._loop.time() - address.gone_at)) * 1000)
            return Sent(410, json.dumps({"reason": "Unregistered", "timestamp": since}))
        self._push_to(address, json.loads(request.body)["notificationData"])
        return Sent(200, "")

    def _watch(self, authorization: str, life: str) -> None:
        """Apple takes a new provider token every 20 minutes, not more; one sooner where the clock was set."""
        if authorization in self._seen:
            return
        now = self._loop.time()
        since = max(now - _JWT_PERIOD + 5, self._clock.set_at)
        if any(whose == life and at > since for whose, at in self._seen.values()):
            self._trace.violated("provider tokens are renewed too often", life)
        self._seen[authorization] = life, now


class FcmHost(Host):
    """Google: the API and the token endpoint, which shares its bad times."""

    kind = "fcm"
    troubles = (*Host.troubles, "quota", "bad_account", "no_permission")
    refusals = ("quota", "bad_account", "no_permission")

    def __init__(self, name: str, loop: VirtualLoop, clock: WallClock, rng: Random, trace: Trace) -> None:
        super().__init__(name, loop, clock, rng, trace)
        self._access: dict[str, float] = {}

    def error(self, status: int, reason: str, retry_after: float | None = None) -> Sent:
        """See `Host`."""
        names = {429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE", 401: "UNAUTHENTICATED"}
        code = reason or names.get(status, "INTERNAL")
        error: dict[str, object] = {"code": status, "message": code, "status": names.get(status, code)}
        if reason:
            fcm = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
            error["details"] = [{"@type": fcm, "errorCode": reason}]
        return Sent(status, json.dumps({"error": error}), retry_after)

    def broken(self) -> Sent:
        """See `Host`."""
        return self.error(self._rng.choice([500, 503]), "")

    def _in_trouble(self, request: Request) -> Answer:
        if self.trouble == "quota":
            return self.error(429, "QUOTA_EXCEEDED")
        if self.trouble == "no_permission":
            return self.error(403, "PERMISSION_DENIED")
        if self.trouble == "bad_account":
            self._access.clear()
            if request.path.endswith("/token"):
                return Sent(400, json.dumps({"error": "invalid_grant", "error_description": "account not found"}))
            return self.error(401, "")
        return super()._in_trouble(request)

    def _take(self, request: Request) -> Sent:
        if request.path.endswith("/token"):
            return self._grant(request)
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._access.get(token, 0.0) < self._clock.truth():
            self._trace.fault("fcm:access_token_expired")
            return self.error(401, "")
        message = json.loads(request.body)["message"]
        address = self.address_of(request)
        if address is None or address.gone_at is not None:
            self._trace.fault("fcm:unregistered")
            return self.error(404, "UNREGISTERED")
        if self._failing(address):
            self._trace.fault("fcm:failing_token")
            return self.error(500, "")
        self._push_to(address, message["data"])
        return Sent(200, "{}")

    def name_in(self, request: Request) -> bytes:
        """See `Host`."""
        if request.path.endswith("/token"):
            return b""
        return str(json.loads(request.body)["message"]["token"]).encode()

    def _grant(self, request: Request) -> Sent:
        [assertion] = urllib.parse.parse_qs(request.body.decode())["assertion"]
        jwt, now = Jwt.parse(assertion), self._clock.truth()
        if not jwt.seconds("iat") - _OAUTH_SKEW <= now < jwt.seconds("exp") + _OAUTH_SKEW:
            self._trace.fault("fcm:assertion_refused")
            return Sent(400, json.dumps({"error": "invalid_grant", "error_description": "must be a short-lived token"}))
        token = f"ya29.{self._rng.randbytes(8).hex()}"
        self._access[token] = now + 3600
        return Sent(200, json.dumps({"access_token": token, "expires_in": 3599}))


class WebHost(Host):
    """A push service that a stranger chose."""

    kind = "web"
    troubles = (*Host.troubles, "forbidden")

    def __init__(self, name: str, loop: VirtualLoop, clock: WallClock, rng: Random, trace: Trace) -> None:
        super().__init__(name, loop, clock, rng, trace)
        self._tokens = VapidTokens(clock.truth)

    def error(self, status: int, reason: str, retry_after: float | None = None) -> Sent:
        """See `Host`."""
        return Sent(status, reason, retry_after)

    def broken(self) -> Sent:
        """See `Host`."""
        return self.error(self._rng.choice([500, 503]), "")

    def _in_trouble(self, request: Request) -> Answer:
        if self.trouble == "forbidden":
            return self.error(self._rng.choice([400, 401, 403]), "no")
        return super()._in_trouble(request)

    def name_in(self, request: Request) -> bytes:
        """See `Host`."""
        return request.path.encode()

    def _take(self, request: Request) -> Sent:
        try:
            self._tokens.key(request.headers.get("authorization", ""), self.name)
        except ValueError:
            self._trace.fault("web:vapid_refused")
            return self.error(403, "bad VAPID")
        address = self.address_of(request)
        if address is None or address.gone_at is not None:
            self._trace.fault("web:gone")
            return self.error(self._rng.choice([404, 410]), "")
        if self._failing(address):
            self._trace.fault("web:failing_token")
            return self.error(500, "")
        self._push_to(address, request.body)
        return Sent(201, "")


HOSTS: Final = {Provider.APNS: ApnsHost, Provider.FCM: FcmHost, Provider.WEB_PUSH: WebHost}
