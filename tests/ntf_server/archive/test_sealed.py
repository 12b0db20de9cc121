"""A sealed stream: what was written comes out, and nothing else does."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_world import MASTER

from ntf_server.archive import sealed
from ntf_server.archive.sealed import MAGIC, PIECE, ArchiveError, Opening, Sealing
from ntf_server.store.sealing import MasterKey

HEAD = len(MAGIC) + 68


def written(*pieces: bytes) -> bytes:
    out = io.BytesIO()
    sealing = Sealing(out, MASTER)
    for piece in pieces:
        assert sealing.write(piece) == len(piece)
    sealing.finish()
    return out.getvalue()


def read(data: bytes, key: MasterKey = MASTER) -> bytes:
    opening = Opening(io.BytesIO(data), key, "FILE")
    out = io.BytesIO()
    while piece := opening.read(1 << 16):
        out.write(piece)
    opening.drain()
    return out.getvalue()


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_what_was_written_comes_out(size: int) -> None:
    plain = bytes(range(256)) * (size // 256 + 1)
    data = written(plain[:size])
    assert read(data) == plain[:size]
    assert plain[:16] not in data


@given(st.lists(st.binary(max_size=3000), max_size=20))
@settings(max_examples=30)
def test_however_it_was_written(pieces: list[bytes]) -> None:
    assert read(written(*pieces)) == b"".join(pieces)


def test_what_was_changed_cut_off_or_moved_is_told() -> None:
    data = written(b"a" * PIECE, b"b" * PIECE, b"c" * 100)
    piece = 4 + PIECE + 16
    first, second, last = data[HEAD : HEAD + piece], data[HEAD + piece : HEAD + 2 * piece], data[HEAD + 2 * piece :]
    head = data[:HEAD]
    bad = {
        "a bit": head + first[:9] + bytes([first[9] ^ 1]) + first[10:] + second + last,
        "its key": head[:-1] + bytes([head[-1] ^ 1]) + first + second + last,
        "its length": head + b"\xff\xff\xff\xff" + first[4:] + second + last,
        "its end": data[:-1],
        "a piece at its end": head + first + second,
        "a piece within": head + first + last,
        "their order": head + second + first + last,
        "more of it": data + b"x",
        "nothing but its head": head,
    }
    for what, changed in bad.items():
        with pytest.raises(ArchiveError, match="FILE: is damaged, or not all of it is there"):
            read(changed)
            pytest.fail(what)


def test_other_keys_and_other_files() -> None:
    with pytest.raises(ArchiveError, match="FILE: was sealed with another master key"):
        read(written(b"plain"), MasterKey(b"another key of thirty-two bytes!"))
    for data in (b"", b"SQLite format 3\0"):
        with pytest.raises(ArchiveError, match="FILE: is no backup of ntf-server"):
            read(data)
    with pytest.raises(ArchiveError, match="FILE: is of a newer ntf-server"):
        read(written(b"plain").replace(b"backup 1", b"backup 2", 1))


def test_each_file_has_a_key_of_its_own() -> None:
    one, other = written(b"plain"), written(b"plain")
    assert one[HEAD:] != other[HEAD:]
    assert len(one) == HEAD + 4 + len(b"plain") + sealed._TAG
