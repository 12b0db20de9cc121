import pytest
from claims import CHECK, ENTRY, MESSAGES, NOW, TTL, VERIFICATION, claim
from cryptography.hazmat.primitives.asymmetric import ec

from ntf_server.push.exchange import Endpoint
from ntf_server.push.jose import public_point
from ntf_server.push.webpush.request import request
from ntf_server.push.webpush.subscription import WebPushSubscription
from ntf_server.store.records import PushKind
from smp_bridge.ntf import Provider

ENDPOINT = Endpoint("https://push.example", "ca.pem")
KEY = ec.generate_private_key(ec.SECP256R1())
SUBSCRIPTION = WebPushSubscription(
    "https://push.example", "push.example", "/p", bytes(16), public_point(KEY), KEY.public_key()
)


@pytest.mark.parametrize("kind", PushKind)
def test_what_is_asked_of_a_push_service(kind: PushKind) -> None:
    made, held = request(
        claim(Provider.WEB_PUSH, b"", kind), SUBSCRIPTION, ENDPOINT, ttl=TTL, authorization="vapid x", now=NOW + 60
    )
    headers = dict(h.split(": ") for h in made.headers)
    assert held == (ENTRY,) * (kind is MESSAGES)
    assert (made.endpoint, made.path) == (ENDPOINT, "/p")
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-encoding"] == "aes128gcm"
    assert headers["authorization"] == "vapid x"
    assert headers["ttl"] == str(TTL[kind] - 60)
    assert headers["urgency"] == ("low" if kind is CHECK else "high")
    assert headers.get("topic") == {VERIFICATION: "verification", CHECK: "check"}.get(kind)
    assert len(made.body) <= 4096
