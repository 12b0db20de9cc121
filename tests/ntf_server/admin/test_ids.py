"""Names that operators give."""

import os

import pytest

from ntf_server.admin.ids import FINGERPRINT, parse_id
from smp_bridge.encoding import b64url


def test_ids_with_and_without_padding() -> None:
    for size, known in ((24, True), (23, False), (25, False), (0, False)):
        name = os.urandom(size)
        assert parse_id(b64url(name)) == parse_id(b64url(name).rstrip("=")) == (name if known else None)


@pytest.mark.parametrize("text", ["é" * 32, "A" * 31, "=", "A" * 10_000])
def test_what_is_no_id(text: str) -> None:
    assert parse_id(text) is None


def test_fingerprints() -> None:
    assert FINGERPRINT.fullmatch("0123456789ab")
    others = ("", "0123456789a", "0123456789AB", "0123456789abc", "x" * 12)
    assert not any(FINGERPRINT.fullmatch(text) for text in others)
