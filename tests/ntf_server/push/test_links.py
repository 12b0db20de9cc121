import selectors

import pycurl
import pytest

from ntf_server.push.exchange import OK, Endpoint, HttpFailure, HttpRequest, HttpResponse, HttpResult
from ntf_server.push.links import Held, Link, Multi, Origin, Transfer

NOW = 100.0
ENDPOINT = Endpoint("https://push.example:8443", "ca.pem", streams=3, connections=2, ends=(b"IdleTimeout",))
ERROR = HttpResponse(500)
REQUEST = HttpRequest(ENDPOINT, "/", (), b"")


def origin() -> Origin:
    made = Origin(ENDPOINT)
    made.lead_to(("192.0.2.1", "2001:db8::1"))
    return made


def add(to: Origin, *, running: int = 0, proven: bool = True, used_at: float = NOW) -> Link:
    link = Link(None, direct=True)  # type: ignore[arg-type]
    link.running, link.proven, link.used_at = running, proven, used_at
    return to.add(link)


def hold(at: Origin, count: int) -> None:
    at.held.extend([Held(NOW, REQUEST, lambda _: None)] * count)


def test_each_link_has_a_name_of_its_own_that_leads_to_the_addresses() -> None:
    o = origin()
    one, two = add(o), add(o)
    assert one.name != two.name
    assert one.name.endswith(".invalid")
    assert one.connect_to == [f"::{one.name}:8443"]
    assert one.resolve == [f"{one.name}:8443:192.0.2.1,[2001:db8::1]"]
    before = one.resolve
    o.lead_to(("192.0.2.1", "2001:db8::1"))
    assert one.resolve is before
    o.lead_to(("192.0.2.2",))
    assert one.resolve == [f"{one.name}:8443:192.0.2.2"]


def test_behind_a_proxy_there_is_one_link_without_a_name() -> None:
    o = Origin(Endpoint("https://push.example", "ca.pem", proxy="http://proxy", connections=4))
    assert o.wants_more()
    link = o.add(Link(None, direct=False))  # type: ignore[arg-type]
    o.lead_to(())
    assert (link.name, link.connect_to, link.resolve) == ("", [], [])
    assert not o.wants_more()
    link.proven, link.running = True, 10_000
    assert o.pick(NOW) is link


def test_one_goes_ahead_on_a_cold_link_and_the_others_wait() -> None:
    o = origin()
    assert o.pick(NOW) is None
    assert o.wants_more()
    link = add(o, proven=False)
    assert o.pick(NOW) is link
    link.running = 1
    assert o.pick(NOW) is None
    assert not o.wants_more()
    link.proven = True
    assert o.pick(NOW) is link


def test_many_that_wait_have_another_link_opened() -> None:
    o = origin()
    add(o, running=1, proven=False)
    hold(o, 2)
    assert not o.wants_more()
    hold(o, 1)
    assert o.wants_more()
    add(o, running=1, proven=False)
    hold(o, 100)
    assert not o.wants_more()  # there are as many as there may be


def test_the_link_with_least_to_do_is_taken_and_a_full_one_has_another_opened() -> None:
    o = origin()
    full = add(o, running=3)
    assert o.pick(NOW) is None
    assert o.wants_more()
    cold = add(o, running=1, proven=False)
    assert o.pick(NOW) is None  # better to wait for the cold one than to overload the other
    cold.proven = True
    assert o.pick(NOW) is cold
    cold.running = 9
    assert o.pick(NOW) is full  # nothing better is left


def test_a_link_that_was_not_used_for_long_is_cold_again() -> None:
    o = origin()
    link = add(o, used_at=NOW - 6)
    assert o.pick(NOW) is link
    link.running = 1
    assert o.pick(NOW) is None


SILENCE = HttpFailure(pycurl.E_OPERATION_TIMEDOUT, timeout=True)
LOST = HttpFailure(pycurl.E_RECV_ERROR, timeout=False)


@pytest.mark.parametrize(
    ("results", "left"),
    [
        ([SILENCE], True),
        ([LOST] * 5, False),
        ([ERROR] * 3, True),
        ([ERROR, ERROR, OK, ERROR, ERROR], False),
        ([ERROR, ERROR, HttpResponse(410), ERROR, ERROR], False),
        ([HttpResponse(410)] * 9, False),
        ([HttpResponse(400, b'{"reason":"IdleTimeout"}')], True),
        ([HttpResponse(200, b"IdleTimeout")], False),
    ],
)
def test_what_has_a_link_left(results: list[HttpResult], left: bool) -> None:
    o = origin()
    link = add(o, running=1)
    assert any(o.answered(link, result, NOW) for result in results) is left


def test_errors_have_a_link_left_now_and_then_only() -> None:
    o = origin()
    left = []
    for second in range(12):
        link = add(o)
        left.append(any(o.answered(link, ERROR, NOW + second) for _ in range(3)))
        o.leave(link)
    assert [second for second, is_left in enumerate(left) if is_left] == [0, 6]


def test_a_failure_makes_a_link_cold_and_an_answer_warm() -> None:
    o = origin()
    link = add(o)
    o.answered(link, LOST, NOW)
    assert not link.proven
    o.answered(link, ERROR, NOW)
    assert link.proven


def test_a_link_that_is_left_gets_nothing_more() -> None:
    o = origin()
    link = add(o)
    assert o.quiet
    link.running = 1
    assert not o.quiet
    o.leave(link)
    assert link.left
    assert o.pick(NOW) is None


def test_the_name_of_a_link_that_is_left_is_forgotten_with_the_next_one() -> None:
    with selectors.DefaultSelector() as selector:
        multi, o = Multi(selector, 2, 3), origin()
        link, other = o.add(Link(multi, direct=True)), o.add(Link(multi, direct=True))
        link.running = 1
        o.leave(link)
        link.forget()
        assert multi.stale == []  # what is under way may yet connect
        link.running = 0
        link.forget()
        assert multi.stale == [f"-{link.name}:8443"]
        Transfer().prepare(REQUEST, lambda _: None, other)
        assert multi.stale == []
        multi.curl.close()
