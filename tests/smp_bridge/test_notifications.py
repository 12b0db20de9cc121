import pytest
import wire_strategies as ws
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge import smp
from smp_bridge.notifications import parse_notifications
from smp_bridge.transmission import ERR_AUTH, Session, encode_blocks, encode_transmission, parse_block

VERSIONS = range(6, 19)
NID = bytes([5]) * 24


def session(version=16):
    return Session("smp", version, ws.SESSION_ID)


def event(entity, message, *, version=16, corr_id=b""):
    return encode_transmission(session(version), corr_id, entity, message.encode(version))


notifications = st.tuples(ws.shorts, st.builds(smp.NMsg, ws.nonces, ws.shorts))
others = st.tuples(ws.shorts, st.sampled_from([smp.End(), smp.Deld(), smp.Ok(), smp.Ends(3), ERR_AUTH]))


@given(st.lists(notifications | others, min_size=1, max_size=4))
def test_notifications_are_what_parsing_one_by_one_gives(sent):
    [content, *_] = encode_blocks(session(), [event(*e) for e in sent])
    parsed = [(t.entity_id, smp.parse_answer(t.command, 16)) for t in parse_block(session(), content)]
    alike = all(isinstance(message, smp.NMsg) for _, message in parsed)
    assert parse_notifications(session(), content) == (parsed if alike else None)


@given(
    ws.broken(
        st.lists(notifications, min_size=1, max_size=3).map(
            lambda es: encode_blocks(session(), [event(*e) for e in es])[0]
        )
    )
)
def test_no_other_block_gives_notifications(content):
    quick = parse_notifications(session(), content)
    if quick is not None:
        parsed = parse_block(session(), content)
        assert [(t.entity_id, smp.parse_answer(t.command, 16)) for t in parsed] == quick


@pytest.mark.parametrize("version", VERSIONS)
def test_answers_and_explicit_sessions_are_no_notifications(version):
    message = smp.NMsg(bytes(24), b"meta")
    [content] = encode_blocks(session(version), [event(NID, message, version=version)])
    assert parse_notifications(session(version), content) == ([(NID, message)] if version >= 7 else None)
    [answer] = encode_blocks(session(version), [event(NID, message, version=version, corr_id=bytes(24))])
    assert parse_notifications(session(version), answer) is None
    assert parse_notifications(session(version), b"") is None
    assert parse_notifications(session(version), b"\0") is None
