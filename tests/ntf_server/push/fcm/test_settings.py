from claims import TTL
from cryptography.hazmat.primitives.asymmetric import rsa

from ntf_server.push.exchange import Endpoint
from ntf_server.push.fcm.settings import FcmSettings, ServiceAccount


def test_no_key_is_shown() -> None:
    key = rsa.generate_private_key(65537, 2048)
    account = ServiceAccount("project", "relay@project", "kid", "https://localhost/token", key)
    endpoint = Endpoint("https://localhost", "ca.pem")
    shown = repr(FcmSettings(account, endpoint, endpoint, TTL))
    assert "project" in shown
    assert "key=" not in shown
    assert "RSA" not in shown
