import json

import pytest
from claims import CHECK, ENTRY, MESSAGES, NOW, TTL, claim

from ntf_server.push.exchange import Endpoint
from ntf_server.push.fcm.request import is_device_token, only_validated, path, request
from ntf_server.store.records import PushKind
from smp_bridge.ntf import DeviceToken, Provider

ENDPOINT = Endpoint("https://localhost", "ca.pem")


@pytest.mark.parametrize("kind", PushKind)
def test_what_is_asked_of_fcm(kind: PushKind) -> None:
    made, held = request(
        claim(Provider.FCM, b"device", kind), ENDPOINT, path("p"), ttl=TTL, token="access", now=NOW + 100
    )
    message = json.loads(made.body)["message"]
    assert held == (ENTRY,) * (kind is MESSAGES)
    assert (made.path, message["token"]) == ("/v1/projects/p/messages:send", "device")
    assert "authorization: Bearer access" in made.headers
    assert message["android"]["ttl"] == f"{TTL[kind] - 100}s"
    assert all(isinstance(value, str) for value in message["data"].values())
    assert (message["data"] == {"checkMessages": "true"}) is (kind is CHECK)


def test_what_is_only_validated_is_the_same_message() -> None:
    made, _ = request(claim(Provider.FCM, b"device", CHECK), ENDPOINT, path("p"), ttl=TTL, token="access", now=NOW)
    body = json.loads(only_validated(made).body)
    assert (body.pop("validate_only"), body) == (True, json.loads(made.body))
    assert (only_validated(made).path, only_validated(made).headers) == (made.path, made.headers)


@pytest.mark.parametrize(("token", "good"), [(b"", False), (b"\xff", False), (b"a:b", True)])
def test_what_is_no_registration_token(token: bytes, good: bool) -> None:
    assert is_device_token(DeviceToken(Provider.FCM, token)) is good
