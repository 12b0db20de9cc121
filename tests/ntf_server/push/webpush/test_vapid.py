import base64

import jwt
import pytest
from claims import NOW, Clock
from cryptography.hazmat.primitives.asymmetric import ec
from py_vapid import Vapid02

from ntf_server.push.jose import public_point as point
from ntf_server.push.webpush import vapid as vapid_module
from ntf_server.push.webpush.vapid import Vapid, key_id

KEY = ec.generate_private_key(ec.SECP256R1())
CONTACT = "mailto:push@example.org"


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


ORIGIN = "https://push.example.org"


def parts(header: str) -> tuple[str, str]:
    scheme, t, k = header.replace(",", "").split(" ")
    assert (scheme, t[:2], k[:2]) == ("vapid", "t=", "k=")
    return t[2:], k[2:]


def test_vapid_as_others_verify_it() -> None:
    vapid = Vapid(KEY, CONTACT, Clock())
    assert unb64(vapid.public_key) == point(KEY)
    for i in range(200):  # r and s with leading zeros come once in 128
        header = vapid.authorization(f"{ORIGIN}:{i + 1}")
        jws, k = parts(header)
        assert k == vapid.public_key
        assert Vapid02.verify(header.replace(", ", ","))
        claims = jwt.decode(
            jws, KEY.public_key(), ["ES256"], audience=f"{ORIGIN}:{i + 1}", options={"verify_exp": False}
        )
        assert claims == {"aud": f"{ORIGIN}:{i + 1}", "exp": NOW + 12 * 3600, "sub": CONTACT}
        assert jwt.get_unverified_header(jws) == {"typ": "JWT", "alg": "ES256"}


def test_vapid_is_kept_for_hours_and_is_never_about_to_expire() -> None:
    clock = Clock()
    vapid = Vapid(KEY, CONTACT, clock)
    seen = []
    for _ in range(48):
        header = vapid.authorization(ORIGIN)
        expires = jwt.decode(parts(header)[0], options={"verify_signature": False})["exp"]
        assert 6 * 3600 <= expires - clock.now <= 24 * 3600  # RFC 8292, section 2
        seen.append(header)
        clock.now += 1800
    assert 2 <= len(set(seen)) <= 5
    assert vapid.authorization(ORIGIN) != vapid.authorization("https://other.example")


def test_vapid_after_the_clock_was_set_back() -> None:
    clock = Clock()
    vapid = Vapid(KEY, CONTACT, clock)
    vapid.authorization(ORIGIN)
    clock.now -= 48 * 3600
    jws, _ = parts(vapid.authorization(ORIGIN))
    assert jwt.decode(jws, options={"verify_signature": False})["exp"] == clock.now + 12 * 3600


def test_the_tokens_of_many_origins_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vapid_module, "_MAX_ORIGINS", 10)
    vapid = Vapid(KEY, CONTACT, Clock())
    first = vapid.authorization(ORIGIN)
    for i in range(30):
        vapid.authorization(f"https://{i}.example")
    assert len(vapid._tokens) == 10
    assert vapid.authorization(ORIGIN) != first


def test_a_key_is_told_by_its_id() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    assert len(key_id(KEY)) == 16
    assert Vapid(KEY, CONTACT).key_id == key_id(KEY) != key_id(other)
