from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from smp_bridge.failure import NsubAnswer
from smp_bridge.subscriptions import NsubRequest, NsubResult


def test_secrets_are_not_in_reprs() -> None:
    """The owner's ref is opaque: it may be made of a notifier's id."""
    key = Ed25519PrivateKey.generate()
    assert repr(NsubRequest("secret-ref", b"secret-id", key, 2)) == "NsubRequest(tag=2)"
    assert "secret" not in repr(NsubResult("secret-ref", 2, NsubAnswer.ERROR, "QUOTA"))


def test_a_request_is_tagged_0_if_nobody_says_more() -> None:
    assert NsubRequest(1, b"id", b"key").tag == 0
