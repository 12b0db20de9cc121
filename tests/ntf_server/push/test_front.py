"""A provider that is one decides about a device token when it is pushed to, and not before."""

import pytest

from ntf_server.push.front import Front, OneProvider
from smp_bridge.ntf import DeviceToken, Provider


@pytest.mark.parametrize("token", [b"", b"00", b"\xff" * 300])
@pytest.mark.parametrize("provider", [Provider.APNS, Provider.FCM])
def test_one_provider_takes_any_device_token(provider: Provider, token: bytes) -> None:
    front: Front = OneProvider()
    device = DeviceToken(provider, token)
    assert front.refusal(device) is None
    assert front.origin(device) == ""
    assert front.key_id == b""
