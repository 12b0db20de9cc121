import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from ntf_server.push.jose import b64, sign

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
