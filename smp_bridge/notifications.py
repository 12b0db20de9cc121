"""Blocks of notifications, which are what SMP servers send most: parsed at once (wire.md, sections 5 and 7). No I/O."""

import struct
from typing import Final

from smp_bridge.encoding import NONCE_SIZE
from smp_bridge.smp import NMsg
from smp_bridge.transmission import Session

_EVENT: Final = struct.Struct(">H3B")  # sizes: of all, authenticator, correlation and entity id
_NMSG: Final = NMsg.tag + b" "


def parse_notifications(session: Session, content: bytes) -> list[tuple[bytes, NMsg]] | None:
    """(notifier id, event) for each transmission of a block that holds NMSGs only; None for any other block.

    The quick way for what servers send most; `parse_block` and `parse_answer` give the same.
    """
    if not session.implied_session_id:
        return None
    out: list[tuple[bytes, NMsg]] = []
    pos, end = 1, len(content)
    try:
        for _ in range(content[0]):
            size, authenticator, corr_id, entity_id = _EVENT.unpack_from(content, pos)
            start = pos + _EVENT.size
            tag = start + entity_id
            nonce = tag + len(_NMSG)
            meta = nonce + NONCE_SIZE
            pos += 2 + size
            if authenticator or corr_id or content[tag:nonce] != _NMSG or meta + 1 + content[meta] != pos:
                return None
            out.append((content[start:tag], NMsg(content[nonce:meta], content[meta + 1 : pos])))
    except (struct.error, IndexError):
        return None
    return out if out and pos == end else None
