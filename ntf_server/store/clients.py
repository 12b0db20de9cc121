"""Whose a registration is: the device that made it shows the same DH key when it registers once more."""

import hmac
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from ntf_server.store.sealing import CLIENT_DH, SECRET, SERVER_PRIVATE, Sealer
from smp_bridge.crypto import CryptoError, dh_box_key


class KeptClient(NamedTuple):
    """What is kept of it, sealed. `server_private`: of those that came from the reference, which have no client key;
    else empty or None.
    """

    client_dh: bytes
    secret: bytes
    server_private: bytes | None


def is_same_client(sealer: Sealer, token_id: bytes, kept: KeptClient, client_dh: bytes) -> bool:
    """Whether it has the same DH key. Raises SealingError."""
    if not kept.server_private:
        return hmac.compare_digest(sealer.open(kept.client_dh, CLIENT_DH + token_id), client_dh)
    private = sealer.open(kept.server_private, SERVER_PRIVATE + token_id)
    try:
        shared = dh_box_key(private, X25519PublicKey.from_public_bytes(client_dh))
    except (CryptoError, ValueError):
        return False
    return hmac.compare_digest(shared, sealer.open(kept.secret, SECRET + token_id))
