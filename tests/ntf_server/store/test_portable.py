"""What moves from one store to another."""

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moving import contents, tokens
from msgspec.structs import replace

from ntf_server.push.jose import generate_key, public_point
from ntf_server.push.webpush.subscription import WebPushSubscription
from ntf_server.store.contract import StoreConflictError
from ntf_server.store.portable import (
    Digest,
    Mark,
    Moved,
    Servers,
    Slice,
    batches,
    being_filled,
    common_fence,
    due_at,
    fitting,
    origin_of,
    read_mark,
)
from smp_bridge.encoding import short

SECRET = ("device_token", "secret", "code", "server_private", "client_dh")


@pytest.mark.parametrize("host", [b"push.example.org", b"PUSH.example.org", b"2001:db8::1", b"192.0.2.1"])
@pytest.mark.parametrize("port", [b"", b"443", b"0443", b"8443", b"08443"])
def test_the_origin_is_that_of_the_provider(host: bytes, port: bytes) -> None:
    key = public_point(generate_key())
    token = short(host) + short(port) + short(b"/path") + short(bytes(16)) + short(key)
    assert origin_of(token) == WebPushSubscription.parse(token).origin


@given(st.binary(max_size=60))
def test_rubbish_has_no_origin_or_one_of_https(rubbish: bytes) -> None:
    assert not origin_of(rubbish) or origin_of(rubbish).startswith("https://")


def test_fences_that_are_times_are_shortened_once_and_keep_their_order() -> None:
    year_2026, year_2200 = 1_790_000_000_000_000, 7_260_000_000_000_000
    assert [common_fence(f) for f in (0, 1, 2**31 - 1)] == [0, 1, 2**31 - 1]
    assert common_fence(year_2026) < common_fence(year_2026 + 5_000_000) < common_fence(year_2200) < 1 << 31
    assert common_fence(common_fence(year_2026)) == common_fence(year_2026)


@pytest.mark.parametrize(
    ("kept", "due"),
    [
        ((5, "ACTIVE", 1, 2, 3), 5),
        ((None, "ACTIVE", 1, 2, 3), 1000),
        ((None, "ACTIVE", None, 2, 3), 2000),
        ((None, "ACTIVE", None, 0, 3), 3000),
        ((None, "ACTIVE", None, 0, 0), None),
        ((None, "REGISTERED", 1, 2, 3), 2000),
        ((None, "INVALID", 1, 0, 3), None),
    ],
)
def test_what_a_relay_had_in_memory_is_due(kept: tuple[Any, ...], due: int | None) -> None:
    assert due_at(*kept) == due


def summed(digest: Digest, servers: Any, moved: Any) -> Digest:
    digest.add_servers(Servers(servers, Counter()))
    for one in moved:
        digest.add(Slice([one], None, Counter()))
    return digest


@given(contents())
def test_digests_do_not_depend_on_the_order(content: Any) -> None:
    servers, moved = content
    one, other = Digest.pair()
    summed(one, servers, moved)
    turned = [replace(m, queues=m.queues[::-1]) for m in moved[::-1]]
    assert one.differences(summed(other, servers[::-1], turned)) == []
    assert one.newest == max((m.token.active_at for m in moved), default=0)
    assert one.counts["subscriptions"] == sum(len(m.queues) for m in moved)


@given(tokens(1), st.sampled_from(["status", "secret", "period", "device_token", "due_ms"]))
def test_any_difference_is_seen(token: Any, field: str) -> None:
    one, other = Digest.pair()
    old = getattr(token, field)
    changed = replace(token, **{field: old + (b"x" if isinstance(old, bytes) else "x" if isinstance(old, str) else 1)})
    summed(one, [], [Moved(token, ())])
    summed(other, [], [Moved(changed, ())])
    assert one.differences(other) == ["registrations"]
    assert one.differences(Digest.pair()[0]) == ["registrations"]
    assert Digest.pair()[0].differences(one) == ["registrations"]


@given(tokens(1))
def test_what_is_there_thrice_is_seen(token: Any) -> None:
    """Which an XOR would not show."""
    one, other = Digest.pair()
    moved = Moved(token, ())
    assert summed(one, [], [moved] * 3).differences(summed(other, [], [moved])) == ["registrations"]


@given(tokens(1))
def test_no_repr_shows_a_secret(token: Any) -> None:
    text = repr(Moved(token, ()))
    assert not any(name in text for name in SECRET)


def test_what_is_read_at_once_has_a_bound() -> None:
    assert [fitting(sizes) for sizes in ([], [1], [50_000, 1], [1, 50_000], [10_000] * 3, [1] * 200)] == [
        0, 1, 1, 1, 2, 200,
    ]  # fmt: skip


def test_batches() -> None:
    assert list(batches([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert list(batches([], 2)) == []


def test_a_relay_is_told_in_one_line_what_to_do() -> None:
    text = str(being_filled("name"))
    assert text.startswith("name: ") and "\n" not in text and "run that again" in text


def test_a_mark_that_cannot_be_read_is_another_versions() -> None:
    for rubbish in (b"", b"rubbish", msgspec.msgpack.encode({"source": 1})):
        with pytest.raises(StoreConflictError, match="name: another `ntf-server` began to fill it"):
            read_mark("name", rubbish)
    mark = Mark("source", (1, -1), None)
    assert read_mark("name", msgspec.msgpack.encode(mark)) == mark
