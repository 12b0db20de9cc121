import base64
import json
import re

import jwt
import pytest
from claims import NOW, Clock
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from ntf_server.push.apns.provider_token import ProviderToken
from ntf_server.push.apns.settings import SigningKey
from ntf_server.push.jose import generate_key

KEY = generate_key()
SIGNING = SigningKey(KEY, "KEYKEYKEY1", "TEAMTEAM01")


def unb64(part: str) -> bytes:
    assert re.fullmatch(r"[A-Za-z0-9_-]+", part)  # RFC 7515: no padding
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def issued_at(token: str) -> int:
    return int(json.loads(unb64(token.split(".")[1]))["iat"])


def test_the_jwt_verifies() -> None:
    for _ in range(200):  # r and s with leading zeros come once in 128
        header, claims, signature = ProviderToken(SIGNING, Clock()).get().split(".")
        assert json.loads(unb64(header)) == {"alg": "ES256", "kid": "KEYKEYKEY1"}
        assert json.loads(unb64(claims)) == {"iss": "TEAMTEAM01", "iat": NOW}
        raw = unb64(signature)
        assert len(raw) == 64  # JOSE: r and s, not DER
        der = encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
        KEY.public_key().verify(der, f"{header}.{claims}".encode(), ec.ECDSA(SHA256()))


def test_it_is_renewed_between_20_and_60_minutes() -> None:
    clock = Clock()
    token = ProviderToken(SIGNING, clock, clock)
    first = token.get()
    renewed = []
    for second in range(0, 2 * 3600, 10):
        clock.now = NOW + second + 0.5
        if token.get() != first:
            first = token.get()
            renewed.append(second)
            assert issued_at(first) == NOW + second
    gaps = [b - a for a, b in zip([0, *renewed], renewed, strict=False)]
    assert len(gaps) >= 2
    assert all(20 * 60 <= gap < 60 * 60 - 60 for gap in gaps)


def test_nobody_has_it_renewed_more_often_than_twice_in_20_minutes() -> None:
    clock, monotonic = Clock(), Clock(0)
    token = ProviderToken(SIGNING, clock, monotonic)
    seen = {token.get()}
    for i in range(60):
        monotonic.now += 60
        clock.now += (-1) ** i * 3600  # and the wall clock is moved about
        token.expire(token.get())
        seen.add(token.get())
    assert 3 <= len(seen) <= 7


@pytest.mark.parametrize("step", [-3600, 3600])
def test_a_clock_that_was_set_has_it_renewed_as_soon_as_apple_allows(step: int) -> None:
    clock, monotonic = Clock(), Clock(0)
    token = ProviderToken(SIGNING, clock, monotonic)
    first = token.get()
    clock.now += step
    monotonic.now += 19 * 60
    assert token.get() == first
    monotonic.now += 60
    assert issued_at(token.get()) == NOW + step


def test_one_of_a_clock_that_was_set_is_replaced_at_once_when_apple_refuses_it_and_then_not_for_20_minutes() -> None:
    """The operator who set the clock right does not wait for 20 minutes."""
    clock, monotonic = Clock(), Clock(0)
    token = ProviderToken(SIGNING, clock, monotonic)
    first = token.get()
    clock.now += 7200
    assert token.get() == first
    assert token.expire(first)
    second = token.get()
    assert issued_at(second) == NOW + 7200
    clock.now -= 7200
    monotonic.now += 20 * 60 - 1
    assert not token.expire(second)
    assert token.get() == second
    monotonic.now += 1
    assert token.expire(second)
    assert issued_at(token.get()) == NOW


def test_an_expired_one_is_replaced_once() -> None:
    clock = Clock()
    token = ProviderToken(SIGNING, clock, clock)
    first = token.get()
    assert not token.expire(first)  # it is too young
    assert token.get() == first
    clock.now += 20 * 60
    assert token.expire(first)
    second = token.get()
    assert second != first
    assert token.expire(first)  # answers to other pushes with the old one come later
    assert token.get() == second


def test_another_key_signs_at_once() -> None:
    other, token = generate_key(), ProviderToken(SIGNING, Clock(), Clock())
    first = token.get()
    token.use(SigningKey(KEY, "KEYKEYKEY1", "TEAMTEAM01"))
    assert token.get() == first
    token.use(SigningKey(other, "KEYKEYKEY1", "TEAMTEAM01"))
    second = token.get()
    jwt.decode(second, other.public_key(), ["ES256"], options={"verify_iat": False})
    token.use(SigningKey(other, "KEYKEYKEY2", "TEAMTEAM01"))
    assert token.get() != second


def test_it_is_in_no_repr() -> None:
    token = ProviderToken(SIGNING, Clock())
    assert token.get() not in repr(token)
    assert repr(token) == "ProviderToken()"
