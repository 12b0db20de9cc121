"""The state file: what is written is read, nobody else reads it, a failure loses nothing, and errors are clear."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from ntf_client import StateError, StateNotFoundError, Subscription, state
from ntf_client.state import DeviceState
from smp_bridge import crypto
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import b64url
from smp_bridge.ntf import DeviceToken, Provider

NTF = ServerAddress("ntf", ("ntf.example.org", "::1"), "444", bytes(range(32)))
SMP = ServerAddress("smp", ("smp.example.org",), "", bytes(range(32, 64)))
NEW = DeviceState.new(NTF, DeviceToken(Provider.APNS, b"00ff"))
SUBSCRIPTIONS = (Subscription(b"s1", SMP, b"n1", bytes(32)), Subscription(b"s2", SMP, b"n2"))
FULL = DeviceState(NTF, NEW.token, NEW.verify_key, NEW.dh_key, bytes(24), bytes(range(32)), SUBSCRIPTIONS)


def comparable(s: DeviceState) -> tuple[Any, ...]:
    keys = (crypto.encode_private(s.verify_key), crypto.encode_private(s.dh_key))
    return (s.server, s.token, *keys, s.token_id, s.secret, s.subscriptions)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.json"


@pytest.mark.parametrize("saved", [NEW, FULL])
def test_what_is_written_is_read(path: Path, saved: DeviceState) -> None:
    state.save(path, NEW)
    state.save(path, saved)
    assert comparable(state.load(path)) == comparable(saved)


def test_only_the_owner_can_read_it(path: Path) -> None:
    path.touch(mode=0o644)
    old_mask = os.umask(0)
    try:
        state.save(path, FULL)
        state.save(path.parent / "new" / "folder" / "device.json", FULL)
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((path.parent / "new" / "folder").stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir() if p.is_file()] == [path.name]


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.save(path, NEW)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StateError, match="No space left") as caught:
            state.save(path, FULL)
    assert str(path) in str(caught.value)
    assert comparable(state.load(path)) == comparable(NEW)
    assert list(path.parent.iterdir()) == [path]


def test_where_no_file_can_be(path: Path) -> None:
    path.mkdir()
    for bad in (path, Path("a\0b"), path.parent / ("x" * 300)):
        with pytest.raises(StateError, match="cannot be written"):
            state.save(bad, FULL)
        with pytest.raises(StateError, match="cannot be read"):
            state.load(bad)
    with pytest.raises(StateError, match="cannot be deleted"):
        state.remove(path)


def test_no_file(path: Path) -> None:
    with pytest.raises(StateNotFoundError, match="register"):
        state.load(path)
    state.remove(path)


def test_a_newer_version_is_refused(path: Path) -> None:
    path.write_text(json.dumps({"format": state.FORMAT, "version": 2, "future": True}))
    with pytest.raises(StateError, match="newer ntf-client"):
        state.load(path)


@pytest.mark.parametrize(
    "content", [b"{}", b'{"format":"something else","version":1}', b'{"format":"ntf-server","server":5}']
)
def test_a_file_of_something_else_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StateError, match="not a state file of ntf-client"):
        state.load(path)


def content() -> dict[str, Any]:
    file: dict[str, Any] = json.loads(state.encode(FULL))
    return file


ED448 = b64url(crypto.encode_private(Ed448PrivateKey.generate()))


@pytest.mark.parametrize(
    "change",
    [
        {"server": str(SMP)},
        {"server": "ntf://x"},
        {"provider": "XX"},
        {"provider": None},
        {"device_token": "%"},
        {"device_token": "A" * 344},  # 258 bytes: no registration could carry them
        {"provider": "WP"},
        {"verify_key": ""},
        {"verify_key": content()["dh_key"]},
        {"dh_key": content()["verify_key"]},
        {"verify_key": ED448},
        {"token_id": None},
        {"secret": None},
        {"token_id": ""},
        {"secret": b64url(bytes(31))},
        {"version": "1"},
        {"version": 0},
        {"subscriptions": {}},
        {"subscriptions": [{}]},
        {"subscriptions": [{**content()["subscriptions"][0], "server": str(NTF)}]},
        {"subscriptions": [{**content()["subscriptions"][0], "id": b64url(bytes(256))}]},
        {"subscriptions": [{**content()["subscriptions"][0], "secret": "AAAA"}]},
    ],
)
def test_a_broken_file_is_refused_without_its_secrets(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps({**content(), **change}))
    with pytest.raises(StateError, match="is broken") as caught:
        state.load(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert not any(content()[key] in text for key in ("verify_key", "dh_key", "secret", "device_token"))


def test_unknown_fields_of_this_version_are_left_alone(path: Path) -> None:
    path.write_text(json.dumps({**content(), "note": "mine"}))
    assert comparable(state.load(path)) == comparable(FULL)


@given(st.data())
def test_nothing_but_state_error_comes_of_a_damaged_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    raw = bytearray(json.dumps(content()).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(raw) - 1))
        raw[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=3))
    path.write_bytes(raw)
    try:
        state.load(path)
    except StateError as e:
        assert "\n" not in str(e)


@pytest.mark.parametrize("raw", [b"", b"\xff", b"[" * 100_000, b'{"other":' + b"[" * 100_000, b"7"])
def test_files_that_are_not_even_json_objects(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    with pytest.raises(StateError, match="is broken"):
        state.load(path)


def test_secrets_are_in_no_repr() -> None:
    shown = repr(FULL)
    assert "ntf.example.org" in shown
    assert not any(s in shown for s in ("secret", "verify_key=", "dh_key=", "token_id", "00ff", "notifier_id"))
