"""Whose a registration is."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ntf_server.store.clients import KeptClient, is_same_client
from ntf_server.store.sealing import CLIENT_DH, SECRET, SERVER_PRIVATE, Sealer, SealingError
from smp_bridge import crypto

SEALER = Sealer(bytes(32))
ID = b"id"


@pytest.mark.parametrize("private", [None, b""])
def test_by_the_key_that_is_kept(private: bytes | None) -> None:
    kept = KeptClient(SEALER.seal(b"client", CLIENT_DH + ID), b"", private)
    assert is_same_client(SEALER, ID, kept, b"client")
    assert not is_same_client(SEALER, ID, kept, b"another")
    with pytest.raises(SealingError):
        is_same_client(SEALER, b"another id", kept, b"client")


def test_by_the_secret_that_it_comes_to() -> None:
    client, other = (X25519PrivateKey.generate().public_key() for _ in range(2))
    private = X25519PrivateKey.generate().private_bytes_raw()
    secret = SEALER.seal(crypto.dh_box_key(private, client), SECRET + ID)
    kept = KeptClient(b"", secret, SEALER.seal(private, SERVER_PRIVATE + ID))
    assert is_same_client(SEALER, ID, kept, client.public_bytes_raw())
    for wrong in (other.public_bytes_raw(), bytes(32), b"short", os.urandom(32)):
        assert not is_same_client(SEALER, ID, kept, wrong)
