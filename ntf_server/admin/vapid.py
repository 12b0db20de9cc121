"""The VAPID keys in use, as apps are given them: `ntf-server vapid`."""

from collections.abc import Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from ntf_server.push.jose import b64, public_point

VAPID: Final = "vapid"  # the admin socket's command


def told(key: ec.EllipticCurvePrivateKey | None, older: Sequence[ec.EllipticCurvePrivateKey]) -> dict[str, Any]:
    """`key`: the public key in force, None: Web Push is off; `older`: those that subscriptions may still be for. Each
    as its uncompressed point in base64url, without padding.
    """
    return {"key": None if key is None else b64(public_point(key)), "older": [b64(public_point(k)) for k in older]}
