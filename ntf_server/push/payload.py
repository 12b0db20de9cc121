"""What reaches the device (wire.md, section 8): encrypted, of one size per kind, within the provider's limit."""

import os
from typing import Final

from ntf_server.store.records import Push, PushKind, StoredNotification
from smp_bridge import crypto
from smp_bridge.encoding import NONCE_SIZE, b64url, b64url_bytes
from smp_bridge.ntf import encode_entry

APNS_LIMIT: Final = 4096  # bytes of a body

_BACKGROUND: Final = b'{"aps":{"content-available":1},"notificationData":'
_ALERT: Final = (
    b'{"aps":{"mutable-content":1,"alert":"Encrypted message or another app event",'
    b'"category":"NTF_CAT_CHECK_MESSAGE"},"notificationData":'
)
_NONCE: Final = b'{"nonce":"'
_CHECK: Final = _BACKGROUND + b'{"checkMessages":true}}'


def _largest_padded(limit: int) -> int:
    """Largest padded plaintext whose body, of whatever kind, is no longer than `limit`."""
    before = max(len(_ALERT + b'","message":"'), len(_BACKGROUND + b'","verification":"'))
    fixed = before + len(_NONCE) + NONCE_SIZE * 4 // 3 + len(b'"}}')
    return (limit - fixed) // 4 * 3 - crypto.TAG_SIZE


PADDED_SIZE: Final = _largest_padded(APNS_LIMIT)  # the one size of all plaintexts


def entries(
    stored: tuple[StoredNotification, ...], size: int = PADDED_SIZE
) -> tuple[bytes, tuple[StoredNotification, ...]]:
    """(the plaintext of a messages push, what it holds), oldest first, at most `size` - 2 bytes.

    What does not fit is left out: first what was sent before, then the newest, which go out in the next push.
    """
    encoded = [_entry(n) for n in stored]
    plain = b";".join(encoded)
    if len(plain) <= size - 2:
        return plain, stored
    kept = list(zip(stored, encoded, strict=True))
    while len(kept) > 1 and sum(len(entry) + 1 for _, entry in kept) - 1 > size - 2:
        kept.remove(next((item for item in kept if item[0].sent), kept[-1]))
    return b";".join(entry for _, entry in kept), tuple(n for n, _ in kept)


def _entry(stored: StoredNotification) -> bytes:
    n = stored.notification
    return encode_entry(str(stored.server).encode(), n.notifier_id, n.received_at, n.nonce, n.meta)


def apns_body(push: Push, nonce: bytes) -> tuple[bytes, tuple[StoredNotification, ...]]:
    """(JSON body, notifications that it holds). Raises ValueError if a single notification does not fit.

    `nonce`: 24 random bytes, never used before.
    """
    if push.kind is PushKind.CHECK:
        return _CHECK, ()
    head = _ALERT if push.kind is PushKind.MESSAGES else _BACKGROUND
    name, sealed, held = _sealed(push, nonce)
    return head + _NONCE + b64url_bytes(nonce) + b'","' + name + b'":"' + sealed + b'"}}', held


def notification_data(push: Push) -> tuple[dict[str, str], tuple[StoredNotification, ...]]:
    """(what APNs has as `notificationData`, all values strings, notifications that it holds). Raises ValueError."""
    if push.kind is PushKind.CHECK:
        return {"checkMessages": "true"}, ()
    nonce = os.urandom(NONCE_SIZE)
    name, sealed, held = _sealed(push, nonce)
    return {"nonce": b64url(nonce), name.decode(): sealed.decode()}, held


def _sealed(push: Push, nonce: bytes) -> tuple[bytes, bytes, tuple[StoredNotification, ...]]:
    """(name of the box, box as base64url, notifications in it)."""
    held: tuple[StoredNotification, ...] = ()
    if push.kind is PushKind.VERIFICATION:
        name, plain = b"verification", push.code
    else:
        name = b"message"
        plain, held = entries(push.notifications)
    sealed = crypto.secretbox(push.secret, nonce, crypto.pad(plain, PADDED_SIZE))
    return name, b64url_bytes(sealed), held
