from typing import Any

import jwt
import pytest
from certificates import ODD_KEYS
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from ntf_server.push.jose import KeyFileError, b64, generate_key, key_pem, load_key, public_point, sign

EC = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize(("key", "algorithm"), [(EC, "ES256"), (RSA, "RS256")], ids=["ES256", "RS256"])
def test_another_library_takes_it(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, algorithm: str) -> None:
    token = sign(key, {"kid": "K"}, {"iss": "T", "iat": 1})
    assert jwt.get_unverified_header(token)["alg"] == algorithm
    assert jwt.get_unverified_header(token)["kid"] == "K"
    claims = jwt.decode(token, key.public_key(), algorithms=[algorithm], options={"verify_iat": False})
    assert claims == {"iss": "T", "iat": 1}


@pytest.mark.parametrize("key", [EC, RSA], ids=["ES256", "RS256"])
def test_another_key_does_not_verify_it(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    token = sign(key, {}, {"iss": "T"})
    with pytest.raises(jwt.InvalidTokenError):
        jwt.decode(token, ec.generate_private_key(ec.SECP256R1()).public_key(), algorithms=["ES256"])


@given(st.binary())
def test_base64url_without_padding(data: bytes) -> None:
    assert "=" not in b64(data)
    assert jwt.utils.base64url_decode(b64(data)) == data


# --- key files

KEY = generate_key()


def pem(key: Any, encryption: KeySerializationEncryption | None = None) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))


def test_a_key_as_apple_gives_it_out() -> None:
    assert load_key(pem(KEY)).private_numbers() == KEY.private_numbers()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"SECRET not PEM",
        b"-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n",
        pem(KEY)[:-60],
        pem(KEY, BestAvailableEncryption(b"password")),
        pem(ec.generate_private_key(ec.SECP384R1())),
        pem(ed25519.Ed25519PrivateKey.generate()),
        pem(rsa.generate_private_key(65537, 2048)),
        KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        *ODD_KEYS,
    ],
)
def test_another_key_is_refused(content: bytes) -> None:
    with pytest.raises(KeyFileError) as caught:
        load_key(content)
    assert "SECRET" not in str(caught.value)


def test_a_key_that_we_made_is_read_again() -> None:
    assert load_key(key_pem(KEY)).private_numbers() == KEY.private_numbers()
    assert len(public_point(KEY)) == 65
