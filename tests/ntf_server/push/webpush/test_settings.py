from claims import TTL

from ntf_server.push.exchange import Endpoint
from ntf_server.push.jose import generate_key
from ntf_server.push.webpush.settings import WebPushSettings

KEY = generate_key()


def test_no_key_is_shown() -> None:
    shown = repr(WebPushSettings((KEY,), "mailto:a@example.org", Endpoint("", "ca.pem"), TTL))
    assert shown.startswith("WebPushSettings(")
    assert "Key object" not in shown
    assert "key=" not in shown
