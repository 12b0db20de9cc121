"""What an operator brings from the reference, where strangers' words stand too: its store log, and what comes of it."""

from functools import cache
from typing import Any

from reference_world import TODAY, Queue, Registration, last_log, store_log

from fuzz.target import Target, add
from ntf_server.store.reference.log_lines import CreateQueue, CreateToken, LastNotification, parse_line
from ntf_server.store.reference.rows import (
    ReferenceQueue,
    ReferenceToken,
    UnreadableError,
    moved_notification,
    moved_queue,
    moved_token,
)

_WORDS = (b"TCREATE ", b"TSTATUS ", b"TUPDATE ", b"TCRON ", b"TTIME ", b"TDELETE ", b"SCREATE ", b"SSTATUS ",
          b"SDELETE ", b"SERVICE ", b"v1 ", b" serviceAssoc=T", b"ERR ", b"smp://")  # fmt: skip


def _moved(data: bytes) -> Any:
    """A line, and the record that it makes."""
    line = parse_line(data)
    match line:
        case CreateToken():
            *facts, active_at = (getattr(line, name) for name in line.__struct_fields__)
            return moved_token(ReferenceToken(*facts, None, active_at, 1), TODAY)
        case CreateQueue(subscription_id=i, notifier_id=n, notifier_key=key, status=status):
            return moved_queue(ReferenceQueue(i, n, key, status, True), line.server, 1, TODAY, None)
        case LastNotification(at=at, nonce=nonce, meta=meta):
            return moved_notification(1, at, nonce, meta)
    return line


@cache
def _lines() -> list[bytes]:
    r = Registration(queues=[Queue(last=(TODAY, bytes(24), b"meta"))], period=20)
    made = (store_log([r]) + last_log([r])).splitlines()
    token, queue = (words[1].partition(b"=")[2] for words in (made[0].split(b" "), made[1].split(b" ")))
    return [
        *made,
        b"TSTATUS %s INVALID,BAD" % token,
        b"TUPDATE %s apns_prod ab12 Y29kZQ==" % token,
        b"TCRON %s 20" % token,
        b"TTIME %s 1790035200" % token,
        b"TDELETE %s" % token,
        b"SSTATUS %s ERR no answer service=T" % queue,
        b"SDELETE %s" % queue,
        b"what is this",
    ]


add(
    Target(
        "store log of the reference",
        _moved,
        _lines,
        ["ntf_server.store.reference.log_lines.parse_line", "ntf_server.store.reference.rows.moved_token"],
        (UnreadableError,),
        lambda record: repr(record).encode("utf-8", "surrogateescape"),
        max_size=800,
        words=_WORDS,
    )
)
