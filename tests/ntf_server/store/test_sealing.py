import base64
import os
import re
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntf_server.store.sealing import (
    MasterKey,
    Sealer,
    SealingError,
    WrongMasterKeyError,
    fingerprint,
    generate_key_text,
)

RAW = bytes(range(100, 132))  # some printable, some not
URL_SAFE = b"\xff" * 31 + b"\xfb"
DATABASE_KEY = b"\x07" * 32
CONTEXT = b"tokens.secret:" + bytes(24)


def same(one: MasterKey, other: MasterKey) -> bool:
    return one.unwrap(other.wrap(DATABASE_KEY)) == DATABASE_KEY


# --- where a master key comes from


@pytest.mark.parametrize("key", [RAW, URL_SAFE, b"\n" * 31 + b"\xff", b"\xff" * 31 + b"\n", bytes(32)])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_key_in_every_form(tmp_path: Path, key: bytes, end: bytes) -> None:
    url, standard = base64.urlsafe_b64encode(key), base64.b64encode(key)
    file = tmp_path / "master.key"
    for data in (key, key.hex().encode(), key.hex().upper().encode(), url, url.rstrip(b"="), standard):
        file.write_bytes(data + end)
        assert same(MasterKey.from_bytes(data + end), MasterKey(key))
        assert same(MasterKey.from_file(file), MasterKey(key))
        if data is not key:
            assert same(MasterKey.from_text((data + end).decode()), MasterKey(key))
            assert same(MasterKey.from_bytes(data + b"\r\n"), MasterKey(key))


def test_generated_keys_are_keys_and_differ() -> None:
    one, other = generate_key_text(), generate_key_text()
    assert one != other
    assert same(MasterKey.from_text(one), MasterKey(base64.urlsafe_b64decode(one + "=")))


BAD = {
    "empty": b"",
    "a newline": b"\n",
    "short": b"\xfeSECRET",
    "long": b"\xfeSECRET" + bytes(30),
    "hex of 16 bytes": b"5ec2e7" * 5 + b"00",
    "hex of 31 bytes": b"5e" * 31,
    "hex of 33 bytes": b"5e" * 33,
    "no hex": b"5e" * 31 + b"xy",
    "a password": b"SECRET password of 32 characters",
    "a password and newline": b"SECRET password of 32 characters\n",
    "short base64": b"SECRET" * 7,
    "long base64": b"SECRET" * 7 + b"abc",
    "padded too much": b"SECRET" * 7 + b"a==",
    "not ASCII": "SECRET-ключ".encode(),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_key_is_refused_without_showing_it(tmp_path: Path, what: str) -> None:
    file = tmp_path / "master.key"
    file.write_bytes(BAD[what])
    with pytest.raises(SealingError, match="give 32 random bytes") as caught:
        MasterKey.from_file(file)
    text = str(caught.value)
    assert str(file) in text
    assert "\n" not in text
    for shown in (text, repr(caught.value), repr(caught.value.__context__)):
        assert "SECRET" not in shown
        assert "5e" not in shown


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_key_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(SealingError, match=f"{size} bytes"):
        MasterKey(bytes(size))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(SealingError, match=str(path)):
            MasterKey.from_file(path)


# --- commands


def test_a_command_gives_the_key() -> None:
    program = [sys.executable, "-c", "import sys; sys.stdout.write(sys.argv[1])", RAW.hex() + "\n"]
    assert same(MasterKey.from_command(program), MasterKey(RAW))
    text = f"{sys.executable} -c 'import os; os.write(1, bytes(range(100, 132)))'"
    assert same(MasterKey.from_command(text), MasterKey(RAW))


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    marker = tmp_path / "made"
    with pytest.raises(SealingError, match="no master key"):
        MasterKey.from_command(f"/bin/echo $HOME; touch {marker} `touch {marker}` | cat")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("", "is empty; give a program"),
        ("   ", "is empty; give a program"),
        ([], "is empty; give a program"),
        ([""], "is empty; give a program"),
        ("kms 'SECRET", "no closing quotation"),
        ("/absent/kms SECRET", "/absent/kms: No such file"),
        ("/ SECRET", "Permission denied"),
        (["/bin/echo", "SECRET\0"], "cannot be run"),
        ("/bin/false SECRET", "/bin/false: ended with exit code 1"),
        ("/bin/sh -c 'echo SECRET; exit 3'", "exit code 3"),
        ("/bin/sh -c 'kill -9 $$'", "signal 9"),
        ("/bin/true SECRET", "/bin/true: is empty"),
        ("/bin/echo SECRET", "the output of /bin/echo: 6 characters"),
    ],
)
def test_commands_that_fail(command: str | list[str], what: str) -> None:
    with pytest.raises(SealingError, match=what) as caught:
        MasterKey.from_command(command)
    assert "SECRET" not in str(caught.value)


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(SealingError, match=r"/bin/sh: gave nothing within 0\.5 seconds"):
        MasterKey.from_command(["/bin/sh", "-c", f"sleep 60 & echo $! > {file}; wait"], timeout=0.5)
    assert time.monotonic() - started < 10
    child = Path("/proc", file.read_text().strip(), "stat")
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() - started < 10
        time.sleep(0.01)


def test_a_command_does_not_read_our_input() -> None:
    before = os.dup(0)
    try:
        read, write = os.pipe()
        os.write(write, RAW)
        os.close(write)
        os.dup2(read, 0)
        os.close(read)
        with pytest.raises(SealingError, match="is empty"):
            MasterKey.from_command("/bin/cat", timeout=10)
        assert os.read(0, 100) == RAW
    finally:
        os.dup2(before, 0)
        os.close(before)


# --- wrapping


def test_wrapping_hides_the_database_key_and_never_looks_the_same() -> None:
    master = MasterKey(RAW)
    one, other = master.wrap(DATABASE_KEY), master.wrap(DATABASE_KEY)
    assert one[8:20] != other[8:20]
    assert one[20:] != other[20:]
    assert DATABASE_KEY not in one
    assert RAW not in one
    assert len(one) == 68


def test_another_master_key_is_told_apart_from_damage() -> None:
    wrapped = MasterKey(RAW).wrap(DATABASE_KEY)
    with pytest.raises(WrongMasterKeyError) as caught:
        MasterKey(URL_SAFE).unwrap(wrapped)
    assert MasterKey(RAW).key_id.hex() in str(caught.value)
    assert MasterKey(URL_SAFE).key_id.hex() in str(caught.value)
    for i in range(8, len(wrapped)):
        damaged = bytes(b ^ (0x10 if i == j else 0) for j, b in enumerate(wrapped))
        with pytest.raises(SealingError, match="damaged") as damage:
            MasterKey(RAW).unwrap(damaged)
        assert not isinstance(damage.value, WrongMasterKeyError)
    for cut in (b"", wrapped[:-1], wrapped + b"x", wrapped[:8]):
        with pytest.raises(SealingError, match="instead of 68"):
            MasterKey(RAW).unwrap(cut)


def test_a_key_id_tells_nothing_about_the_key() -> None:
    assert MasterKey(RAW).key_id == MasterKey(RAW).key_id
    assert len({MasterKey(bytes([i]) * 32).key_id for i in range(100)}) == 100
    assert MasterKey(RAW).key_id not in RAW


def test_keys_are_not_shown() -> None:
    for thing in (MasterKey(RAW), Sealer(RAW)):
        shown = repr(thing) + str(thing) + f"{thing}"
        assert RAW.hex() not in shown
        assert repr(RAW)[2:-1] not in shown
        assert not hasattr(thing, "__dict__")


# --- sealing

ids = st.binary(min_size=24, max_size=24)
columns = st.sampled_from([b"tokens.secret:", b"tokens.code:", b"subscriptions.notifier_key:"])


@given(st.binary(max_size=300), columns, ids)
def test_what_is_sealed_opens(plain: bytes, column: bytes, row: bytes) -> None:
    sealed = Sealer(DATABASE_KEY).seal(plain, column + row)
    assert Sealer(DATABASE_KEY).open(sealed, column + row) == plain
    assert len(sealed) == len(plain) + 28


@given(st.binary(max_size=60), st.data())
def test_any_change_of_a_bit_is_refused(plain: bytes, data: st.DataObject) -> None:
    sealer = Sealer(DATABASE_KEY)
    sealed = bytearray(sealer.seal(plain, CONTEXT))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealingError, match=r"sealed value of tokens\.secret cannot"):
        sealer.open(bytes(sealed), CONTEXT)


@given(st.binary(max_size=60), st.integers(0, 87))
def test_a_cut_value_is_refused(plain: bytes, size: int) -> None:
    sealer = Sealer(DATABASE_KEY)
    sealed = sealer.seal(plain, CONTEXT)
    with pytest.raises(SealingError, match="cannot be opened"):
        sealer.open(sealed[: min(size, len(sealed) - 1)], CONTEXT)
    with pytest.raises(SealingError, match="cannot be opened"):
        sealer.open(sealed + b"\0", CONTEXT)


@given(columns, ids, columns, ids)
def test_a_value_opens_only_where_it_belongs(column: bytes, row: bytes, other_column: bytes, other_row: bytes) -> None:
    sealer = Sealer(DATABASE_KEY)
    sealed = sealer.seal(b"plain", column + row)
    if (column, row) == (other_column, other_row):
        return
    with pytest.raises(SealingError):
        sealer.open(sealed, other_column + other_row)


def test_another_database_key_opens_nothing() -> None:
    with pytest.raises(SealingError):
        Sealer(RAW).open(Sealer(DATABASE_KEY).seal(b"plain", CONTEXT), CONTEXT)


def test_a_fingerprint_needs_the_key() -> None:
    """The same of one device token, in whatever case Apple's hex is; another one with another key."""
    first, second = (Sealer(bytes([n]) * 32) for n in range(2))
    found = first.fingerprint("AP", b"ab12")
    assert re.fullmatch("[0-9a-f]{12}", found)
    assert found == first.fingerprint("AP", b"AB12") == fingerprint(first.lookup("AP", b"ab12"))
    assert len({found, second.fingerprint("AP", b"ab12"), first.fingerprint("FC", b"ab12")}) == 3


def test_the_same_value_never_looks_the_same() -> None:
    sealer = Sealer(DATABASE_KEY)
    sealed = [sealer.seal(b"plain", CONTEXT) for _ in range(1000)]
    assert len({s[:12] for s in sealed}) == 1000
    assert len({s[12:] for s in sealed}) == 1000


def test_an_error_does_not_show_the_rows_id() -> None:
    row = os.urandom(24)
    with pytest.raises(SealingError) as caught:
        Sealer(RAW).open(bytes(40), b"tokens.code:" + row)
    assert "tokens.code " in str(caught.value)
    assert repr(row)[2:-1] not in str(caught.value)


@given(
    st.tuples(st.sampled_from(["AP", "AD", "A"]), st.binary(max_size=40)), st.tuples(st.text(max_size=60), st.binary())
)
def test_a_lookup_is_of_its_provider_device_token_and_key(one: tuple[str, bytes], other: tuple[str, bytes]) -> None:
    sealer = Sealer(DATABASE_KEY)
    assert sealer.lookup(*one) == Sealer(DATABASE_KEY).lookup(*one)
    assert (sealer.lookup(*one) == sealer.lookup(*other)) == (one == other)
    assert sealer.lookup(*one) != Sealer(RAW).lookup(*one)
    assert len(sealer.lookup(*one)) == 32


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_a_mask_is_of_its_text_and_key(one: bytes, other: bytes) -> None:
    sealer = Sealer(DATABASE_KEY)
    assert sealer.mask(one) == Sealer(DATABASE_KEY).mask(one)
    assert (sealer.mask(one) == sealer.mask(other)) == (one == other)
    assert sealer.mask(one) != Sealer(RAW).mask(one)
    assert len(sealer.mask(one)) == 16
    assert sealer.mask(one) not in (sealer.lookup("APNS", one)[:16], sealer.origin(one.decode("latin-1")))


def test_what_divides_provider_and_device_token_counts() -> None:
    sealer = Sealer(DATABASE_KEY)
    assert sealer.lookup("A", b"Pxyz") != sealer.lookup("AP", b"xyz")
