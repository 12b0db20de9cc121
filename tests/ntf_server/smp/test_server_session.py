"""What SCHK's answer rests on."""

from ntf_server.smp.server_session import ServerSession
from ntf_server.store.records import Removed, Session
from smp_bridge.address import ServerAddress

SERVER = ServerAddress("smp", ("a.org",), "", bytes(32))


def queue(ref: int, *, associated: bool) -> Removed:
    return Removed(ref, active=True, associated=associated, cursor=(1 if associated else 0, ref))


def test_what_lies_behind_the_cursor_is_not_active() -> None:
    session = ServerSession(Session(SERVER, 1), service=False)
    assert not session.active(queue(1, associated=False))
    session.cursor = (0, 5)
    session.missing.add(4)
    assert [ref for ref in range(1, 8) if session.active(queue(ref, associated=False))] == [1, 2, 3, 5]
    session.complete = True
    assert session.active(queue(7, associated=False))


def test_an_audit_confirms_what_is_associated_page_by_page() -> None:
    session = ServerSession(Session(SERVER, 1), service=True, complete=True)
    session.count_service(4)
    assert session.confirmed == 4
    assert all(session.active(queue(ref, associated=True)) for ref in range(1, 5))
    session.begin_audit(4)
    assert session.confirmed == 0
    assert not any(session.active(queue(ref, associated=True)) for ref in range(1, 5))
    session.remove(queue(2, associated=True))  # its page comes later
    assert session.take_audit_page([1, 2], (1, 2)) == [1]
    assert not session.active(queue(1, associated=True))
    session.missing.discard(1)
    assert session.active(queue(1, associated=True))
    assert not session.active(queue(3, associated=True))
    assert session.take_audit_page([3, 4], None) == [3, 4]
    session.missing.clear()
    assert session.active(queue(4, associated=True))
    session.count_service(3)
    assert (session.auditing, session.confirmed) == (False, 3)


def test_all_is_confirmed_when_the_service_has_its_own_too() -> None:
    assert not ServerSession(Session(SERVER, 1), service=False).confirms_all
    assert ServerSession(Session(SERVER, 1), service=False, complete=True).confirms_all
    session = ServerSession(Session(SERVER, 1), service=True, complete=True, service_active=False)
    assert not session.confirms_all
    session.count_service(4)
    assert session.confirms_all
    session.begin_audit(4)
    assert not session.confirms_all
    session.take_audit_page([1], None)
    assert session.confirms_all
    session.begin_again()
    assert not session.confirms_all


def test_what_another_session_took_over_is_not_active() -> None:
    session = ServerSession(Session(SERVER, 1), service=True, complete=True)
    session.count_service(4)
    session.begin_audit(4)
    session.take_audit_page([1], None)
    session.end_service(4)
    assert not session.active(queue(2, associated=True))
    assert session.confirmed == 0
    assert session.ended


def test_what_was_deleted_while_pages_are_read_and_subscribed_anew_is_missing_until_it_is_confirmed() -> None:
    session = ServerSession(Session(SERVER, 1), service=False)
    session.remove(queue(4, associated=False))  # a page may still bring it
    session.add([4])
    session.complete = True
    assert (session.missing, session.removed) == ({4}, set())
