import base64

import http_ece
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from ntf_server.push.webpush.encryption import encrypt
from ntf_server.push.webpush.subscription import WebPushSubscription

KEY = ec.generate_private_key(ec.SECP256R1())


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def subscribed(auth: bytes, browser: ec.EllipticCurvePublicKey) -> WebPushSubscription:
    key = browser.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return WebPushSubscription("", "", "", auth, key, browser)


def test_the_vector_of_rfc_8291_appendix_a() -> None:
    key = ec.derive_private_key(int.from_bytes(unb64("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw")), ec.SECP256R1())
    public = unb64("BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4")
    browser = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
    subscription = subscribed(unb64("BTBZMqHH6r4Tts7J_aSIgg"), browser)
    assert subscription.key == public
    plain = b"When I grow up, I want to be a watermelon"
    assert b64(encrypt(plain, subscription, key=key, salt=unb64("DGv6ra1nlYgDCS1FRnbzlw"))) == (
        "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27ml"
        "mlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPT"
        "pK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
    )


@given(st.binary(max_size=4096 - 103))
def test_a_browser_decrypts(plain: bytes) -> None:
    browser = ec.generate_private_key(ec.SECP256R1())
    subscription = subscribed(b"a" * 16, browser.public_key())
    body = encrypt(plain, subscription)
    assert len(body) == len(plain) + 103
    assert http_ece.decrypt(body, private_key=browser, auth_secret=b"a" * 16) == plain


def test_key_and_salt_are_fresh() -> None:
    subscription = subscribed(bytes(16), KEY.public_key())
    bodies = [encrypt(b"same", subscription) for _ in range(5)]
    assert len({b[:16] for b in bodies}) == 5
    assert len({b[21:86] for b in bodies}) == 5
