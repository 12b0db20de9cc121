"""What becomes of a registration, a subscription and an SMP server of the reference."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey
from msgspec.structs import replace
from reference_world import PROVIDERS, SMP, TODAY, Queue, Registration, Service

from ntf_server.store.portable import MovedToken
from ntf_server.store.reference.rows import (
    EXAMPLES,
    OF_SKIPPED,
    OWNERLESS,
    SKIPPED,
    TWICE,
    LeftOut,
    ReferenceQueue,
    ReferenceToken,
    UnreadableError,
    moved_notification,
    moved_queue,
    moved_server,
    moved_token,
    server_address,
    service,
    subscription_status,
)
from smp_bridge import crypto
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import b64url, b64url_bytes
from smp_bridge.identity import load_certificates
from smp_bridge.places import ANYWHERE

BEGAN = TODAY + 5000


def token(r: Registration, **changes: Any) -> ReferenceToken:
    return replace(ReferenceToken(*r.row(), len(r.queues)), **changes)


def queue(q: Queue, **changes: Any) -> ReferenceQueue:
    key = crypto.encode_private(q.key)
    return replace(ReferenceQueue(q.subscription_id, q.notifier_id, key, q.status, q.associated), **changes)


def test_what_a_device_knows_stays() -> None:
    r = Registration("apns_prod", period=20)
    moved = moved_token(token(r), BEGAN)
    assert (moved.token_id, moved.provider, moved.device_token) == (r.token_id, "AP", r.device_token.encode())
    assert moved.verify_key == crypto.encode_public(r.key.public_key())
    assert moved.secret == crypto.dh_box_key(r.client.private_bytes_raw(), r.server.public_key())
    assert moved.server_dh == r.server.public_key().public_bytes_raw()
    assert (moved.server_private, moved.client_dh, moved.code) == (r.server.private_bytes_raw(), b"", r.code)
    assert (moved.status, moved.reason, moved.active_at, moved.proven) == ("ACTIVE", "", TODAY, True)
    assert (moved.due_ms, moved.verification_due, moved.check_due) == (None, 0, 0)


@pytest.mark.parametrize(("name", "provider"), PROVIDERS.items())
def test_providers(name: str, provider: str) -> None:
    assert moved_token(token(Registration(name)), BEGAN).provider == provider
    assert moved_token(token(Registration("apns_null", "test_ntf_token")), BEGAN).provider == "AN"


@pytest.mark.parametrize(
    ("status", "queues", "becomes"),
    [
        ("NEW", 0, ("REGISTERED", "", False, False)),
        ("REGISTERED", 0, ("REGISTERED", "", False, False)),
        ("REGISTERED", 2, ("REGISTERED", "", True, False)),  # its device token was replaced
        ("CONFIRMED", 0, ("CONFIRMED", "", False, False)),
        ("ACTIVE", 0, ("ACTIVE", "", True, True)),
        ("EXPIRED", 0, ("EXPIRED", "", True, False)),
        ("INVALID", 0, ("INVALID", "", True, False)),  # it may have been: its commands are taken there
        ("INVALID,TOPIC", 1, ("INVALID", "TOPIC", True, False)),
    ],
)
def test_statuses(status: str, queues: int, becomes: Any) -> None:
    moved = moved_token(token(Registration(status=status), queues=queues), BEGAN)
    assert (moved.status, moved.reason, moved.proven, moved.delivered_at > 0) == becomes


def test_times_that_nobody_knows_are_when_the_import_began_and_first_checks_are_spread() -> None:
    r = Registration(active_at=None)
    moved = moved_token(token(r), BEGAN)
    assert (moved.active_at, moved.registered_at, moved.period, moved.period_at) == (BEGAN, BEGAN, 0, BEGAN)
    periods = [moved_token(token(Registration(period=20)), BEGAN).period_at for _ in range(200)]
    assert all(BEGAN - 1200 < at <= BEGAN for at in periods)
    assert len({at // 120 for at in periods}) > 8
    assert moved_token(token(Registration(period=20, period_at=TODAY)), BEGAN).period_at == TODAY
    far = moved_token(token(Registration(period=20, period_at=BEGAN + 9, active_at=BEGAN + 9)), BEGAN)
    assert (far.period_at, far.active_at, far.registered_at) == (BEGAN, BEGAN, BEGAN)  # of a clock that was wrong
    day_before = moved_token(token(Registration(active_at=TODAY - 86400)), BEGAN)  # it may have been a minute ago
    assert (day_before.active_at, day_before.registered_at) == (TODAY - 86400, TODAY)
    assert moved_token(token(Registration(period=-7)), BEGAN).period == 0
    assert moved_token(token(Registration(period=1 << 40)), BEGAN).period == 0


SECRETS = Registration()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token_id": b""}, "the id is no id"),
        ({"provider": "webpush"}, "the push provider is unknown"),
        ({"device_token": b""}, "the device token is empty or too long"),
        ({"device_token": bytes(256)}, "the device token is empty or too long"),
        ({"code": b""}, "the registration code is empty or too long"),
        ({"dh_secret": bytes(31)}, "the DH secret has not 32 bytes"),
        ({"status": "ASLEEP"}, "the status is unknown"),
        ({"status": "INVALID,SAD"}, "the status is unknown"),
        ({"verify_key": b"\x00" * 44}, "the verify key cannot be read"),
        ({"dh_private": b"\x00" * 48}, "the DH key cannot be read"),
        ({"dh_private": crypto.encode_private(Ed25519PrivateKey.generate())}, "the DH key is no X25519 key"),
    ],
)
def test_a_registration_that_cannot_be_read(changes: Any, words: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        moved_token(token(SECRETS, **changes), BEGAN)
    assert str(caught.value) == words
    assert SECRETS.device_token not in repr(token(SECRETS))


@pytest.mark.parametrize(
    ("status", "becomes"),
    [
        *((s, (s, "")) for s in ("NEW", "PENDING", "ACTIVE", "END", "DELETED", "AUTH", "SERVICE")),
        ("INACTIVE", ("PENDING", "")),
        ("ERR BROKER TIMEOUT", ("ERR", "BROKER TIMEOUT")),
        ("ERR", ("ERR", "")),
        ("ERR " + "x" * 999, ("ERR", "x" * 255)),
    ],
)
def test_statuses_of_subscriptions(status: str, becomes: Any) -> None:
    assert subscription_status(status) == becomes


def test_subscriptions() -> None:
    q = Queue(associated=True)
    last = moved_notification(3, TODAY, bytes(24), b"meta")
    moved = moved_queue(queue(q), q.server, 7, TODAY, last)
    assert (moved.subscription_id, moved.notifier_id) == (q.subscription_id, q.notifier_id)
    assert moved.key == crypto.quick_private(q.key)
    assert (moved.server, moved.spelling, moved.place, moved.associated) == (SMP.encode(), b"", 7, True)
    assert moved.notification == last and (last.number, last.sent) == (3, 1)
    odd = ServerAddress("smp", ("SMP.example.org",), "5223", b"i" * 32)
    moved = moved_queue(queue(q, status="AUTH"), odd, 7, TODAY, None)
    assert (moved.server, moved.spelling, moved.associated) == (SMP.encode(), odd.encode(), False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"subscription_id": b""}, "the id is empty or too long"),
        ({"notifier_id": bytes(256)}, "the notifier id is empty or too long"),
        ({"notifier_key": b"rubbish"}, "the notifier key cannot be read"),
        ({"notifier_key": crypto.encode_private(X448PrivateKey.generate())}, "the notifier key cannot be read"),
        ({"status": "UP"}, "the status is unknown"),
    ],
)
def test_a_subscription_that_cannot_be_read(changes: Any, words: str) -> None:
    with pytest.raises(UnreadableError, match=f"^{words}$"):
        moved_queue(queue(Queue(), **changes), SMP, 1, TODAY, None)
    for nonce, meta in ((bytes(23), b"meta"), (bytes(24), b"")):
        with pytest.raises(UnreadableError, match="not whole"):
            moved_notification(1, TODAY, nonce, meta)


@pytest.mark.parametrize(
    ("hosts", "port", "address"),
    [
        ("smp.example.org", "", "smp.example.org"),
        ("smp.example.org", "5223", "smp.example.org:5223"),
        ("smp8.simplex.im,abc.onion", "443", "smp8.simplex.im,abc.onion:443"),
        ("2001:db8::1", "5223", "[2001:db8::1]:5223"),
        ("[2001:db8::1]", "", "[2001:db8::1]"),
    ],
)
def test_addresses(hosts: str, port: str, address: str) -> None:
    assert str(server_address(hosts, port, b64url_bytes(b"i" * 32))) == f"smp://{b64url(b'i' * 32)}@{address}"


@pytest.mark.parametrize(
    ("hosts", "port", "key_hash"),
    [
        ("", "", b64url_bytes(bytes(32))),
        ("host", "0", b64url_bytes(bytes(32))),
        ("host", "", b64url_bytes(bytes(31))),
        ("host", "", bytes(32)),
        ("host", "", b"\xff"),
    ],
)
def test_an_address_that_cannot_be_read(hosts: str, port: str, key_hash: bytes) -> None:
    with pytest.raises(UnreadableError, match="the address cannot be read"):
        server_address(hosts, port, key_hash)


def test_servers_and_services() -> None:
    made = Service()
    known = {
        name.removeprefix("ntf_service_"): value for name, value in made.columns.items() if not name.endswith("hash")
    }
    found = service(known["id"], known["cert"], known["priv_key"])
    assert load_certificates(found.chain) == [made.certificate]
    moved = moved_server(SMP, BEGAN, active=True, service=found, counted=2, counted_hash=b"x" * 16)
    assert (moved.service_id, moved.chain, moved.key) == (made.service_id, found.chain, found.key)
    assert (moved.counted, moved.released, moved.proven, moved.prefixes) == (2, 0, BEGAN, ANYWHERE)
    moved = moved_server(SMP, BEGAN, active=False, service=None, counted=0, counted_hash=bytes(16))
    assert (moved.service_id, moved.chain, moved.proven, moved.prefixes, moved.tried_since) == (None, b"", 0, "", BEGAN)
    for chain, key, words in (
        (known["cert"][:-1], known["priv_key"], "cannot be read"),
        (b"\x00", known["priv_key"], "cannot be read"),
        (b"\x01\x00\x03abc", known["priv_key"], "cannot be read"),
        (known["cert"], b"rubbish", "cannot be read"),
        (known["cert"], Service().columns["ntf_service_priv_key"], "of other ones"),
    ):
        with pytest.raises(UnreadableError, match=words):
            service(known["id"], chain, key)


def test_what_is_left_out_is_counted_and_some_of_it_named() -> None:
    left_out, tally = LeftOut(), Counter[str]()
    for n in range(20):
        left_out.add(tally, "registrations: bad", bytes([n]), 2)
    left_out.add(tally, "lines: bad", "log:7")
    left_out.add(tally, "lines: bad", "log:7")
    assert tally == {"registrations: bad": 40, "lines: bad": 2}
    assert left_out.ids == {
        "registrations: bad": [b64url(bytes([n])) for n in range(EXAMPLES)],
        "lines: bad": ["log:7"],
    }


def test_a_registration_is_left_out_with_its_subscriptions_and_its_words_are_of_the_first_reason() -> None:
    left_out, tally, moved = LeftOut(), Counter[str](), moved_token(token(Registration()), BEGAN)

    def unreadable() -> MovedToken:
        raise UnreadableError("it is odd")

    def of(read: Callable[[], MovedToken], queues: int = 3, *, skipped: bool = False, twice: bool = False) -> object:
        return left_out.registration(tally, b"t", queues, lambda: b"q", read, skipped=skipped, twice=twice)

    assert of(lambda: moved) is moved
    assert tally == {}
    assert of(lambda: moved, skipped=True, twice=True) is of(lambda: moved, twice=True) is of(unreadable, 0) is None
    assert tally == {SKIPPED: 1, OF_SKIPPED: 3, TWICE: 1, OWNERLESS: 3, "registrations: it is odd": 1}
    assert left_out.ids[SKIPPED] == [b64url(b"t")] and left_out.ids[OWNERLESS] == [b64url(b"q")]
