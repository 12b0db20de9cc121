from claims import TTL

from ntf_server.push.apns.settings import ApnsSettings, SigningKey
from ntf_server.push.jose import generate_key

KEY = generate_key()


def test_no_key_is_shown() -> None:
    shown = repr(ApnsSettings({}, "app", SigningKey(KEY, "kid", "team"), TTL))
    assert shown.startswith("ApnsSettings(")
    assert "Key object" not in shown
    assert "key=" not in shown
