"""What is done about what servers say; in their words."""

import pytest
from redis._parsers.base import BaseParser
from redis.exceptions import ConnectionError as ConnectionLostError
from redis.exceptions import InvalidResponse

from ntf_server.store.contract import FencedError, StoreConflictError, StoreError, StoreFullError
from ntf_server.store.redis.remedy import (
    Again,
    Elsewhere,
    InFull,
    NotPrimaryError,
    Remedy,
    remedy,
    unavailable,
)
from ntf_server.store.redis.url import Endpoint

AT = Endpoint("10.0.0.1", 6379)


def done_about(said: str) -> Remedy:
    """About an error as it is on the wire, behind its hyphen."""
    return remedy(BaseParser.parse_error(said), AT, "script claim")


@pytest.mark.parametrize(
    ("said", "look"),
    [
        ("TRYAGAIN Multiple keys request during rehashing of slot", False),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", False),
        ("MISCONF Errors writing to the AOF file: No space left on device", False),
        ("LOADING Redis is loading the dataset in memory", True),
        ("CLUSTERDOWN The cluster is down", True),
        ("CLUSTERDOWN Hash slot not served", True),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", True),
        ("READONLY You can't write against a read only replica.", True),
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)", True),
    ],
)
def test_what_passes(said: str, look: bool) -> None:
    assert done_about(said) == Again(f"10.0.0.1:6379: {said}", look, moves=said.startswith("TRYAGAIN"))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("ERR Script attempted to access a non local key in a cluster node script: 4ab, on @user_script:1.", "moves"),
        ("ERR Attempted to access a non local key in a cluster node script: 4ab, on @user_script:285.", "moves"),
        ("ERR Script attempted to execute a command while the cluster is down script: 4ab, on @user_script:1.", "down"),
        ("ERR Can not execute a write command 'hset' while the cluster is down and readonly script: 4ab", "down"),
    ],
)
def test_what_passes_in_the_middle_of_a_script(said: str, why: str) -> None:
    told = done_about(said)
    assert isinstance(told, Again) and told.look and told.reason.endswith(why)
    assert told.moves is (why == "moves")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionLostError("Connection closed by server."),
        ConnectionRefusedError(111, "Connect call failed"),
        TimeoutError(),
        InvalidResponse("Protocol error"),
        BaseParser.parse_error("ERR max number of clients reached"),
        NotPrimaryError(),
    ],
)
def test_what_cannot_be_reached(error: Exception) -> None:
    told = remedy(error, AT, "script claim")
    assert isinstance(told, Again) and told.look and told.reason.startswith("10.0.0.1:6379")
    assert told.reason.removeprefix("10.0.0.1:6379").strip(": ")


@pytest.mark.parametrize(
    ("said", "where"),
    [
        ("MOVED 3999 10.0.0.2:7000", Elsewhere(3999, Endpoint("10.0.0.2", 7000), asking=False)),
        ("MOVED 3999 :7000", Elsewhere(3999, Endpoint("10.0.0.1", 7000), asking=False)),
        ("MOVED 3999 ?:7000", Elsewhere(3999, Endpoint("10.0.0.1", 7000), asking=False)),
        ("ASK 1 2001:db8::1:7000", Elsewhere(1, Endpoint("2001:db8::1", 7000), asking=True)),
    ],
)
def test_who_has_the_slot(said: str, where: Elsewhere) -> None:
    assert done_about(said) == where


def test_a_script_that_is_not_there() -> None:
    assert done_about("NOSCRIPT No matching script. Please use EVAL.") == InFull()


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (
            "OOM command not allowed when used memory > 'maxmemory'.",
            StoreFullError,
            "10.0.0.1:6379: maxmemory is reached",
        ),
        ("FENCED shard 3 has fence 7", FencedError, "shard 3 has fence 7"),
        ("CONFLICT no such thing", StoreConflictError, "no such thing"),
        ("ERR user_script:1: attempt to index nil", StoreConflictError, "script claim: ERR user_script:1: attempt"),
        ("WRONGTYPE Operation against a key", StoreConflictError, "script claim: WRONGTYPE Operation"),
        ("CROSSSLOT Keys in request don't hash to the same slot", StoreConflictError, "script claim: CROSSSLOT Keys"),
        ("EVIL\nline", StoreConflictError, "script claim: EVIL line"),
        ("NOPERM this user has no permissions to run the 'get' command", StoreError, "lacks a right: this user"),
        (
            "ERR ACL failure in script: User relay has no permissions to run the 'del' command",
            StoreError,
            "lacks a right: ACL failure",
        ),
        ("NOAUTH Authentication required.", StoreError, "it asks for a password"),
        ("WRONGPASS invalid username-password pair or user is disabled.", StoreError, "the user or the password"),
        ("ERR invalid password", StoreError, "does not take the password"),
        (
            "ERR AUTH <password> called without any password configured for the default user. Are you sure your"
            " configuration is correct?",
            StoreError,
            "does not take the password of [store] url: AUTH",
        ),
        ("DENIED Redis is running in protected mode because …", StoreError, "it is in protected mode"),
    ],
)
def test_what_does_not_pass(said: str, kind: type[StoreError], text: str) -> None:
    told = done_about(said)
    assert type(told) is kind
    assert text in str(told)


def test_arguments_are_not_told() -> None:
    told = done_about("ERR unknown command 'XACKDEL', with args beginning with: 'secret' 'more'")
    assert isinstance(told, StoreConflictError) and "XACKDEL" in str(told) and "secret" not in str(told)


def test_what_is_said_is_cut() -> None:
    assert len(str(done_about("ERR " + "x" * 5000))) < 400


def test_what_was_tried_for_long_enough() -> None:
    assert str(unavailable("10.0.0.1:6379: gone", 5.0)) == "10.0.0.1:6379: gone (tried for 5 s)"
    assert str(unavailable("", 0.5)) == "no answer (tried for 0.5 s)"


def test_what_is_understood_already() -> None:
    error = StoreFullError("full")
    assert remedy(error, AT, "x") is error
