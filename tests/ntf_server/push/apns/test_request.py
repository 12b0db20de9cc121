import uuid

import pytest
from claims import CHECK, ENTRY, MESSAGES, NOW, TOO_LARGE, TTL, VERIFICATION, claim

from ntf_server.push.apns.request import is_device_token, request
from ntf_server.push.exchange import Endpoint
from ntf_server.store.records import PushKind
from smp_bridge.ntf import DeviceToken, Provider

ENDPOINT = Endpoint("https://localhost", "ca.pem")


@pytest.mark.parametrize("kind", PushKind)
def test_what_is_asked_of_apple(kind: PushKind) -> None:
    made, held = request(claim(Provider.APNS, b"ab" * 32, kind), bytes(24), ENDPOINT, topic="app", ttl=TTL, jwt="token")
    headers = dict(h.split(": ") for h in made.headers)
    assert held == (ENTRY,) * (kind is MESSAGES)
    assert (made.endpoint, made.path) == (ENDPOINT, "/3/device/" + "ab" * 32)
    assert (headers["apns-topic"], headers["authorization"]) == ("app", "bearer token")
    assert headers["apns-push-type"] == ("alert" if kind is MESSAGES else "background")
    assert headers["apns-priority"] == ("10" if kind is MESSAGES else "5")
    assert headers.get("apns-collapse-id") == {VERIFICATION: "verification", CHECK: "check"}.get(kind)
    assert int(headers["apns-expiration"]) == NOW + TTL[kind]
    assert "token" not in repr(made)


def test_its_id_is_that_of_the_push() -> None:
    ids = [
        dict(h.split(": ") for h in request(c, bytes(24), ENDPOINT, topic="a", ttl=TTL, jwt="")[0].headers)["apns-id"]
        for c in (claim(Provider.APNS, b"ab", push_id=bytes([i] * 16)) for i in (7, 7, 255))
    ]
    assert ids[0] == ids[1] != ids[2]
    assert all(uuid.UUID(i).version == 4 and uuid.UUID(i).variant == uuid.RFC_4122 for i in ids)


def test_a_certificate_needs_no_authorization() -> None:
    made, _ = request(claim(Provider.APNS, b"ab"), bytes(24), ENDPOINT, topic="a", ttl=TTL, jwt="")
    assert not any(h.startswith("authorization") for h in made.headers)


def test_an_entry_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="too large"):
        request(
            claim(Provider.APNS, b"ab", MESSAGES, entries=(TOO_LARGE,)), bytes(24), ENDPOINT, topic="a", ttl=TTL, jwt=""
        )


@pytest.mark.parametrize(("token", "good"), [(b"", False), (b".", False), (b"..", False), (b"...", True), (b"a", True)])
def test_what_would_make_another_path_is_no_device_token(token: bytes, good: bool) -> None:
    assert is_device_token(DeviceToken(Provider.APNS, token)) is good
