import pytest

from ntf_server.push.provider import Accepted, NullProvider, Result
from ntf_server.store.records import Notification, Push, PushKind, StoredNotification
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, Provider

SERVER = ServerAddress("smp", ("smp.example.org",), "", bytes(32))


@pytest.mark.parametrize("kind", PushKind)
def test_null_answers_as_if_delivered(kind: PushKind) -> None:
    held = (StoredNotification(1, 1, False, SERVER, Notification(b"q", 1, b"n", b"m")),) * (kind is PushKind.MESSAGES)
    device = DeviceToken(Provider.APNS_NULL, b"")
    pushes = [Push(ref, 0, device, b"", kind, 1, notifications=held) for ref in range(3)]
    results: list[tuple[Push, Result]] = []
    NullProvider().send(pushes, lambda push, result: results.append((push, result)))
    assert results == [(push, Accepted(held)) for push in pushes]
