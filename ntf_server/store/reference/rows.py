"""A registration, a subscription and an SMP server as the reference keeps them, and what becomes of them here.

Its database and its store log hold the same facts, in other forms. What does not fit is told in words that hold nothing
of it.
"""

from collections import Counter as Tally
from collections.abc import Callable, Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ntf_server.store.portable import MovedNotification, MovedQueue, MovedServer, MovedToken
from ntf_server.store.records import WANTED, Record
from smp_bridge import crypto
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import ParseError, Reader, b64url
from smp_bridge.ntf import InvalidReason, Provider, SubscriptionStatus, TokenStatus
from smp_bridge.places import ANYWHERE

SKIPPED: Final = "registrations: --skip-tokens names them"
OF_SKIPPED: Final = "subscriptions: --skip-tokens names their registrations"
ASKED: Final = frozenset([SKIPPED, OF_SKIPPED])
OWNERLESS: Final = "subscriptions: their registration is left out"
TWICE: Final = "registrations: another one has the device, with the same verify key"
QUEUE_TWICE: Final = "another one has the queue, under another spelling of its server"
FENCE: Final = 1  # of all notifications that come from there: sessions begin above
EXAMPLES: Final = 5  # ids that are told of each kind of what is left out

_PROVIDERS: Final = {
    "apns_prod": Provider.APNS,
    "apns_dev": Provider.APNS_SANDBOX,
    "apns_test": Provider.APNS_TEST,
    "apns_null": Provider.APNS_NULL,
}
_MOST: Final = 255  # bytes of an id or a device token, and of an error
_PERIODS: Final = 0xFFFF  # minutes
_NONCE: Final = 24
_SECRET: Final = 32
_DAY: Final = 24 * 3600


class UnreadableError(ValueError):
    """What is wrong with a record, in words that hold nothing of it."""


class LeftOut:
    """What is left out: some `ids`, by kind and reason."""

    def __init__(self) -> None:
        self.ids: dict[str, list[str]] = {}

    def add(self, tally: Tally[str], reason: str, record: bytes | str, count: int = 1) -> None:
        """`count` records; `record`: the id of one of them, or what else names it."""
        tally[reason] += count
        known = self.ids.setdefault(reason, [])
        shown = record if isinstance(record, str) else b64url(record)
        if len(known) < EXAMPLES and shown not in known:
            known.append(shown)

    def registration(
        self,
        tally: Tally[str],
        token_id: bytes,
        queues: int,
        a_queue: Callable[[], bytes],
        token: Callable[[], MovedToken],
        *,
        skipped: bool,
        twice: bool,
    ) -> MovedToken | None:
        """What `token` gives, which may raise UnreadableError; None: it is left out, with so many `queues`, of which
        `a_queue` gives the id of one.
        """
        reason, of_queues = TWICE, OWNERLESS
        if skipped:
            reason, of_queues = SKIPPED, OF_SKIPPED
        elif not twice:
            try:
                return token()
            except UnreadableError as e:
                reason = f"registrations: {e}"
        self.add(tally, reason, token_id)
        if queues:
            self.add(tally, of_queues, a_queue(), queues)
        return None


class ReferenceToken(Record, frozen=True):
    """As it is kept there. `verify_key`, `dh_private`: DER; `dh_secret`: raw; `period_at`, `active_at`: None: unknown;
    `queues`: how many subscriptions it has.
    """

    token_id: bytes
    provider: str
    device_token: bytes
    status: str
    verify_key: bytes
    dh_private: bytes
    dh_secret: bytes
    code: bytes
    period: int
    period_at: int | None
    active_at: int | None
    queues: int


class ReferenceQueue(Record, frozen=True):
    """As it is kept there. `notifier_key`: DER; `associated`: its service there counts."""

    subscription_id: bytes
    notifier_id: bytes
    notifier_key: bytes
    status: str
    associated: bool


def moved_token(t: ReferenceToken, began: int) -> MovedToken:
    """`began`: when the import did, which stands for times that nobody knows, or that are still to come. Raises
    UnreadableError.

    No code and no check is due: what waited in the memory of the reference is gone. First checks are spread over a
    whole period. Who was ACTIVE was pushed to: wrong settings of ours are not taken for a dead device.
    """
    if not 1 <= len(t.token_id) <= _MOST:
        raise UnreadableError("the id is no id")
    provider = _PROVIDERS.get(t.provider)
    if provider is None:
        raise UnreadableError("the push provider is unknown")
    if not 1 <= len(t.device_token) <= _MOST:
        raise UnreadableError("the device token is empty or too long")
    if not 1 <= len(t.code) <= _MOST:
        raise UnreadableError("the registration code is empty or too long")
    if len(t.dh_secret) != _SECRET:
        raise UnreadableError("the DH secret has not 32 bytes")
    status, reason = _token_status(t.status)
    try:
        verify_key = crypto.encode_public(crypto.parse_auth_public(t.verify_key))
    except ParseError as e:
        raise UnreadableError("the verify key cannot be read") from e
    private = _x25519(t.dh_private)
    active_at = min(t.active_at or began, began)
    period = t.period if 0 < t.period <= _PERIODS else 0
    early = int.from_bytes(t.token_id[:4]) % (period * 60) if period else 0
    return MovedToken(
        token_id=t.token_id,
        provider=provider.value,
        device_token=t.device_token,
        verify_key=verify_key,
        client_dh=b"",
        server_private=private.private_bytes_raw(),
        server_dh=private.public_key().public_bytes_raw(),
        secret=crypto.box_key(t.dh_secret),
        code=t.code,
        app="",
        vapid_key=b"",
        status=status.value,
        reason=reason,
        registration=0,
        registered_at=min(active_at + _DAY, began),  # that day
        active_at=active_at,
        proven=bool(t.queues) or status not in {TokenStatus.REGISTERED, TokenStatus.CONFIRMED},
        period=period,
        period_at=min(t.period_at or began - early, began),
        verification_due=0,
        check_due=0,
        due_ms=None,
        attempts=0,
        push_id=b"",
        pushed_at=0,
        ended="",
        ended_reason="",
        delivered_at=active_at if status is TokenStatus.ACTIVE else 0,
    )


def _token_status(text: str) -> tuple[TokenStatus, str]:
    """With the reason why it is INVALID."""
    name, _, reason = text.partition(",")
    try:
        status = TokenStatus(name)
        if status is TokenStatus.INVALID and reason:
            return status, InvalidReason(reason).value
    except ValueError as e:
        raise UnreadableError("the status is unknown") from e
    return TokenStatus.REGISTERED if status is TokenStatus.NEW else status, ""


def _x25519(der: bytes) -> X25519PrivateKey:
    try:
        key = crypto.parse_private(der)
    except ParseError as e:
        raise UnreadableError("the DH key cannot be read") from e
    if not isinstance(key, X25519PrivateKey):
        raise UnreadableError("the DH key is no X25519 key")
    return key


def moved_queue(
    q: ReferenceQueue, server: ServerAddress, place: int, created_at: int, last: MovedNotification | None
) -> MovedQueue:
    """`place`: see `MovedQueue`; `created_at`: nobody knows it, so it is when its registration was last heard of.
    Raises UnreadableError.

    INACTIVE is what the reference subscribes again, as is PENDING here.
    """
    for name, value in (("id", q.subscription_id), ("notifier id", q.notifier_id)):
        if not 1 <= len(value) <= _MOST:
            raise UnreadableError(f"the {name} is empty or too long")
    try:
        key = crypto.to_quick_private(q.notifier_key)
    except ParseError as e:
        raise UnreadableError("the notifier key cannot be read") from e
    status, error = subscription_status(q.status)
    plain, spelled = server.plain.encode(), server.encode()
    return MovedQueue(
        server=plain,
        notifier_id=q.notifier_id,
        subscription_id=q.subscription_id,
        key=key,
        spelling=b"" if spelled == plain else spelled,
        status=status.value,
        error=error,
        associated=q.associated and status in WANTED,
        created_at=created_at,
        place=place,
        notification=last,
    )


def subscription_status(text: str) -> tuple[SubscriptionStatus, str]:
    """With the words of an error. Raises UnreadableError."""
    name, _, error = text.partition(" ")
    try:
        status = SubscriptionStatus(name)
    except ValueError as e:
        raise UnreadableError("the status is unknown") from e
    if status is SubscriptionStatus.INACTIVE:
        return SubscriptionStatus.PENDING, ""
    return status, error[:_MOST] if status is SubscriptionStatus.ERR else ""


def moved_notification(number: int, received_at: int, nonce: bytes, meta: bytes) -> MovedNotification:
    """The newest of a queue; `number` orders those of a token. It was pushed. Raises UnreadableError."""
    if len(nonce) != _NONCE or not meta:
        raise UnreadableError("its nonce or its metadata are not whole")
    return MovedNotification(FENCE, number, received_at, nonce, meta, 1)


def server_address(hosts: str, port: str, key_hash: bytes) -> ServerAddress:
    """`hosts`: with commas between them; `key_hash`: base64url. Raises UnreadableError."""
    try:
        text = f"smp://{key_hash.decode('ascii')}@{_bracketed(hosts)}"
        return ServerAddress.from_text(f"{text}:{port}" if port else text)
    except (ParseError, UnicodeDecodeError) as e:
        raise UnreadableError("the address cannot be read") from e


def _bracketed(hosts: str) -> str:
    """A bare IPv6 address in brackets, so that no part of it is taken for a port."""
    return ",".join(f"[{h}]" if h.count(":") > 1 and not h.startswith("[") else h for h in hosts.split(","))


def moved_server(
    address: ServerAddress, began: int, *, active: bool, service: "Service | None", counted: int, counted_hash: bytes
) -> MovedServer:
    """`active`: it confirmed a subscription; `counted`, `counted_hash`: queues of our service there."""
    return MovedServer(
        address=address.plain.encode(),
        service_id=service.service_id if service else None,
        counted=counted,
        counted_hash=counted_hash,
        released=0,
        released_hash=bytes(16),
        prefixes=ANYWHERE if active else "",
        proven=began if active else 0,
        tried_since=began,
        unused_since=0,
        chain=service.chain if service else b"",
        key=service.key if service else b"",
    )


class Service(Record, frozen=True):
    """That an SMP server knows the reference as. `chain`: PEM; `key`: DER."""

    service_id: bytes
    chain: bytes
    key: bytes


def service(service_id: bytes, chain: bytes, key: bytes) -> Service:
    """`chain`: a list of `large` DER certificates; `key`: DER. Raises UnreadableError."""
    try:
        r = Reader(chain)
        certificates: Sequence[x509.Certificate] = [
            x509.load_der_x509_certificate(der) for der in r.listing(r.large, non_empty=True)
        ]
        r.end()
        private = crypto.parse_private(key)
        public = certificates[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        matches = public == crypto.encode_public(private.public_key())
    except (ParseError, ValueError, x509.InvalidVersion) as e:
        raise UnreadableError("they, or their keys, cannot be read") from e
    if not matches:
        raise UnreadableError("their keys are of other ones")
    pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
    return Service(service_id, pem, crypto.encode_private(private))
