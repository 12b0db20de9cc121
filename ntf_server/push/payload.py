"""What reaches the device (wire.md, section 8): encrypted, of one size per kind, within the provider's limit."""

import os
from typing import Final

from ntf_server.store.records import Claim, Entry, PushKind
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


def entries(stored: tuple[Entry, ...], size: int = PADDED_SIZE) -> tuple[bytes, tuple[Entry, ...]]:
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


def _entry(e: Entry) -> bytes:
    return encode_entry(str(e.server).encode(), e.notifier_id, e.received_at, e.nonce, e.meta)


def apns_body(claim: Claim, nonce: bytes) -> tuple[bytes, tuple[Entry, ...]]:
    """(JSON body, entries that it holds). Raises ValueError if a single entry does not fit.

    `nonce`: 24 random bytes, never used before.
    """
    if claim.kind is PushKind.CHECK:
        return _CHECK, ()
    head = _ALERT if claim.kind is PushKind.MESSAGES else _BACKGROUND
    name, sealed, held = _sealed(claim, nonce)
    return head + _NONCE + b64url_bytes(nonce) + b'","' + name + b'":"' + sealed + b'"}}', held


def notification_data(claim: Claim) -> tuple[dict[str, str], tuple[Entry, ...]]:
    """(what APNs has as `notificationData`, entries that it holds), of a push that says more than to check.

    Raises ValueError if a single entry does not fit.
    """
    nonce = os.urandom(NONCE_SIZE)
    name, sealed, held = _sealed(claim, nonce)
    return {"nonce": b64url(nonce), name.decode(): sealed.decode()}, held


def _sealed(claim: Claim, nonce: bytes) -> tuple[bytes, bytes, tuple[Entry, ...]]:
    """(name of the box, box as base64url, entries in it)."""
    held: tuple[Entry, ...] = ()
    if claim.kind is PushKind.VERIFICATION:
        name, plain = b"verification", claim.code
    else:
        name = b"message"
        plain, held = entries(claim.entries)
    sealed = crypto.secretbox(claim.secret, nonce, crypto.pad(plain, PADDED_SIZE))
    return name, b64url_bytes(sealed), held
