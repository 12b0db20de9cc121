"""Lines of the reference's store log."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_world import SMP, TODAY, Queue, Registration, last_log

from ntf_server.store.reference.log_lines import (
    CreateQueue,
    CreateToken,
    DeleteQueue,
    DeleteToken,
    LastNotification,
    Line,
    SetPeriod,
    SetQueueStatus,
    SetService,
    SetTime,
    SetTokenStatus,
    UpdateToken,
    parse_line,
)
from ntf_server.store.reference.rows import UnreadableError
from smp_bridge import crypto
from smp_bridge.encoding import b64url

R = Registration(period=20)
Q = Queue(last=(TODAY, b"n" * 24, b"meta"))
R.queues.append(Q)
TOKEN, SUB = b64url(R.token_id), b64url(Q.subscription_id)


def test_what_is_made() -> None:
    made = parse_line(R.line().rstrip())
    verify_key, private = crypto.encode_public(R.key.public_key()), crypto.encode_private(R.server)
    token = (
        R.token_id,
        "apns_test",
        R.device_token.encode(),
        "ACTIVE",
        verify_key,
        private,
        R.secret,
        R.code,
        20,
        TODAY,
    )
    assert made == CreateToken(*token)
    without = R.line().partition(b" updatedAt")[0]
    assert parse_line(without) == CreateToken(*token[:-1], None)
    key = crypto.encode_private(Q.key)
    made = parse_line(Q.line(R.token_id).rstrip())
    assert made == CreateQueue(Q.subscription_id, SMP, Q.notifier_id, key, R.token_id, "ACTIVE")
    assert parse_line(Q.line(R.token_id).partition(b" serviceAssoc")[0]) == made
    assert parse_line(last_log([R]).rstrip()) == LastNotification(
        R.token_id, SMP, Q.notifier_id, TODAY, b"n" * 24, b"meta"
    )
    assert R.device_token not in repr(made)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"TSTATUS {TOKEN} ACTIVE", SetTokenStatus(R.token_id, "ACTIVE")),
        (f"TSTATUS {TOKEN} INVALID,BAD", SetTokenStatus(R.token_id, "INVALID,BAD")),
        (f"TUPDATE {TOKEN} apns_prod ab12 Y29kZQ==", UpdateToken(R.token_id, "apns_prod", b"ab12", b"code")),
        (f"TCRON {TOKEN} 30", SetPeriod(R.token_id, 30)),
        (f"TTIME {TOKEN} {TODAY}", SetTime(R.token_id, TODAY)),
        (f"TDELETE {TOKEN}", DeleteToken(R.token_id)),
        (f"SSTATUS {SUB} END", SetQueueStatus(Q.subscription_id, "END")),
        (f"SSTATUS {SUB} ACTIVE service=T", SetQueueStatus(Q.subscription_id, "ACTIVE")),
        (f"SSTATUS {SUB} ERR no answer, so", SetQueueStatus(Q.subscription_id, "ERR no answer, so")),
        (f"SSTATUS {SUB} ERR no answer service=T", SetQueueStatus(Q.subscription_id, "ERR no answer")),
        (f"SDELETE {SUB}", DeleteQueue(Q.subscription_id)),
        (f"SERVICE {SMP} service=off", SetService()),
        (f"SERVICE {SMP} service={SUB}", SetService()),
    ],
)
def test_what_changes(text: str, line: Line) -> None:
    assert parse_line(text.encode()) == line


@pytest.mark.parametrize(
    "text",
    [
        "",
        "TCREATE",
        "tdelete AAAA",
        f"TDELETE {TOKEN} more",
        "TDELETE ",
        "TDELETE ?!",
        f"TCRON {TOKEN} ten",
        f"TCRON {TOKEN} -1",
        f"TCRON {TOKEN} {'9' * 40}",
        f"TUPDATE {TOKEN} apns_prod ab12",
        f"SSTATUS {SUB}",
        f"SSTATUS {SUB} ACTIVE and more",
        f"SERVICE ntf://{b64url(bytes(32))}@host service=off",
        f"v1 {TOKEN} {SMP} 1 AAAA AAAA",
        *(R.line().decode().rstrip().replace(old, new) for old, new in [
            ("tknId=", "tokenId="), ("token=", "token "), (" cron=20", ""), ("updatedAt=", "at="),
            ("dhKeys=", "dhKeys"), (f"{TODAY}", f"{TODAY} more"),
        ]),
        *(Q.line(R.token_id).decode().rstrip().replace(old, new) for old, new in [
            ("smp://", "http://"), ("subStatus=", "status="), ("/", ""),
        ]),
    ],
)  # fmt: skip
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        parse_line(text.encode())
    assert str(caught.value) == "cannot be read"


@given(
    st.binary(max_size=200)
    | st.builds(
        lambda i, j, b: R.line()[:i] + b + R.line()[j:], st.integers(0, 600), st.integers(0, 600), st.binary(max_size=5)
    )
)
def test_rubbish_is_unreadable_and_nothing_else(line: bytes) -> None:
    try:
        parse_line(line.replace(b"\n", b" "))
    except UnreadableError as e:
        assert str(e) == "cannot be read"
