"""What goes over the wire for a call."""

import asyncio

import pytest

from ntf_server.store.redis.call import ASKING, Call, Pending, packed, script_words
from ntf_server.store.redis.script import Script

SCRIPT = Script("x", "return 1")
OTHER = Script("y", "return 2")


@pytest.fixture
async def future() -> "asyncio.Future[object]":
    return asyncio.get_running_loop().create_future()


def pending(future: "asyncio.Future[object]", script: Script | None = SCRIPT) -> Pending:
    words = script_words(Call(script, [b"k1", b"k2"], ["a", 7])) if script else (b"GET", b"k")
    return Pending(words, script=script, writes=True, slot=0, future=future, deadline=0.0)


def test_packed() -> None:
    assert packed((b"SET", "ü", 12)) == b"*3\r\n$3\r\nSET\r\n$2\r\n\xc3\xbc\r\n$2\r\n12\r\n"
    assert ASKING == b"*1\r\n$6\r\nASKING\r\n"


def test_a_script_goes_by_its_sum(future: "asyncio.Future[object]") -> None:
    sent: set[str] = set()
    assert pending(future).wire(sent) == packed((b"EVALSHA", SCRIPT.sha1, 2, b"k1", b"k2", "a", 7))
    assert not sent


def test_one_that_is_unknown_goes_in_full_once_in_a_pipeline(future: "asyncio.Future[object]") -> None:
    sent: set[str] = set()
    in_full = packed((b"EVAL", SCRIPT.text, 2, b"k1", b"k2", "a", 7))
    by_sum = packed((b"EVALSHA", SCRIPT.sha1, 2, b"k1", b"k2", "a", 7))
    first, second, third, other = pending(future), pending(future), pending(future), pending(future, OTHER)
    for each in (first, second, third, other):
        each.unknown = 1
    third.unknown = 2  # the sum behind another's text did not do
    assert [first.wire(sent), second.wire(sent), third.wire(sent)] == [in_full, by_sum, in_full]
    assert other.wire(sent) == packed((b"EVAL", OTHER.text, 2, b"k1", b"k2", "a", 7))


def test_what_people_are_told(future: "asyncio.Future[object]") -> None:
    assert pending(future).name == "script x"
    assert pending(future, None).name == "GET"
