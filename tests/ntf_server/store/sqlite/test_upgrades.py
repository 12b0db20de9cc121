"""Parts of the migration to schema 5; the whole of it is tested in test_migrations.py."""

import pytest

from ntf_server.store.sqlite import upgrades as module
from smp_bridge.encoding import short


@pytest.mark.parametrize(
    ("host", "port", "origin"),
    [
        (b"push.example", b"", "https://push.example"),
        (b"Push.Example", b"443", "https://push.example"),
        (b"push.example", b"8443", "https://push.example:8443"),
        (b"push.example", b"00443", "https://push.example"),
        (b"2001:db8::1", b"8443", "https://[2001:db8::1]:8443"),
        (b"\xff", b"", ""),
    ],
)
def test_a_kept_subscription_of_web_push_has_its_origin(host: bytes, port: bytes, origin: str) -> None:
    assert module.origin_of(short(host) + short(port) + short(b"/path") + short(bytes(16)) + short(bytes(65))) == origin


def test_what_is_no_subscription_has_none() -> None:
    assert module.origin_of(b"") == ""
    assert module.origin_of(b"\x05ab") == ""
