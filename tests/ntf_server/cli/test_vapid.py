"""`ntf-server vapid`, without a running server; of one: admin/test_vapid.py."""

import json
import socket
from pathlib import Path

import pytest
from command_line import in_process, one_line

from ntf_server.config.source import CONFIG_FILE
from ntf_server.push.jose import b64, generate_key, key_pem, load_key, public_point


@pytest.fixture
def key(made: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of Web Push, which is on: the public one."""
    monkeypatch.setenv("NTF_SERVER__WEB_PUSH__KEY_FILE", "vapid.key")
    return b64(public_point(load_key((made / "vapid.key").read_bytes())))


def test_of_the_files(
    made: Path, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = generate_key()
    (made / "old.key").write_bytes(key_pem(before))
    monkeypatch.setenv("NTF_SERVER__WEB_PUSH__OLD_KEY_FILES", "old.key")
    assert in_process(capsys, "vapid", "--path", made) == (0, f"VAPID: {key}\n", "")
    code, out, _ = in_process(capsys, "vapid", "--path", made, "--json")
    assert (code, json.loads(out)) == (0, {"key": key, "older": [b64(public_point(before))]})


def test_while_nobody_listens_at_the_socket(made: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It was left by a server that was killed."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(made / "ntf-server.sock"))
    assert in_process(capsys, "vapid", "--path", made) == (0, f"VAPID: {key}\n", "")


def test_without_web_push(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = in_process(capsys, "vapid", "--path", made)
    assert (code, out) == (2, "")
    wrong = f"{made / CONFIG_FILE}: [web_push] key_file: is not set, so Web Push is off; set it"
    assert one_line(err) == f"ntf-server: {wrong}"


@pytest.mark.usefixtures("key")
def test_without_the_key(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / "vapid.key").unlink()
    code, out, err = in_process(capsys, "vapid", "--path", made)
    assert (code, out) == (2, "") and f"[web_push] key_file: {made}/vapid.key: No such file" in one_line(err)
