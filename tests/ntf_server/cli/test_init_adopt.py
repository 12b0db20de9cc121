"""`ntf-server init --adopt`: a folder of simplexmq's ntf-server taken as it is."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from command_line import contents, in_process, one_line

from ntf_server.cli.init import REFERENCE_TEAM
from ntf_server.config import files as config
from ntf_server.config.identity_files import create_identity
from ntf_server.push.jose import generate_key, key_pem
from smp_bridge.encoding import b64url

Capture = pytest.CaptureFixture[str]
INI = "[STORE_LOG]\nenable = on\n[TRANSPORT]\nhost = ntf.example.org\nport = 443\n[SUBSCRIBER]\nhost_mode = onion\n"
PROXY = "socks_proxy = localhost:9050\n"
OURS = {"ntf-server.toml", "master.key", "vapid.key"}


@pytest.fixture(autouse=True)
def _no_apns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APNS_KEY_FILE", "APNS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """As the reference's init leaves it."""
    folder = tmp_path / "simplex-notifications"
    folder.mkdir()
    create_identity(folder, "ED448", "ntf.example.org")
    (folder / "ntf-server.ini").write_text(INI + PROXY)
    for name in ("openssl_ca.conf", "openssl_server.conf", "server.csr", "ca.srl"):
        (folder / name).write_text("for openssl\n")
    return folder


@pytest.fixture
def apns_key(tmp_path: Path) -> Path:
    path = tmp_path / "AuthKey_ABC123DEFG.p8"
    path.write_bytes(key_pem(generate_key()))
    return path


@pytest.mark.parametrize("beside", [True, False])
def test_the_same_server(
    *, old: Path, tmp_path: Path, apns_key: Path, beside: bool, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, directory = contents(old), old if beside else tmp_path / "ntf-relay"
    monkeypatch.setenv("APNS_KEY_FILE", str(apns_key))
    monkeypatch.setenv("APNS_KEY_ID", "ABC123DEFG")
    code, out, err = in_process(capsys, "init", "--adopt", old, "--path", directory)
    assert code == 0, err
    fingerprint = before["fingerprint"].decode().strip()
    assert out == f"ntf://{fingerprint}@ntf.example.org\n"
    assert f"Move {old / 'ca.key'} offline" in err
    assert f"`ntf-server import --path {directory} --config {old / 'ntf-server.ini'}`" in err
    assert {name: data for name, data in contents(old).items() if name not in OURS} == before
    identity = {"ca.crt", "server.crt", "server.key", "fingerprint"}
    assert contents(directory).keys() == OURS | (before.keys() if beside else identity)
    loaded = config.load(directory, {})
    assert b64url(loaded.credentials.key_hash) == fingerprint
    assert loaded.apns_key is not None
    assert (loaded.settings.apns.key_id, loaded.settings.apns.team_id) == ("ABC123DEFG", REFERENCE_TEAM)
    assert (loaded.settings.subscriber.host_mode, loaded.settings.inactive_clients.ttl) == ("onion", 0)
    assert (directory / "server.key").stat().st_mode & 0o777 == 0o600
    code, checked, err = in_process(capsys, "check", "--path", directory)
    assert (code, err) == (0, "")
    assert f"address     {out}" in checked
    assert "AP through api.push.apple.com:443" in checked
    code, _, err = in_process(capsys, "init", "--adopt", old, "--path", directory)  # once more
    assert code == 2
    assert "is there already, and is kept" in one_line(err)


def test_a_key_beside_the_configuration_is_named_from_there(old: Path, apns_key: Path, capsys: Capture) -> None:
    key = apns_key.rename(old / apns_key.name)
    given = ["--apns-key-file", key, "--apns-key-id", "OTHER", "--apns-team-id", "TEAM"]
    code, out, _ = in_process(
        capsys, "init", "--adopt", old, "--path", old, *given, "--fqdn", "other.example", "--port", "5443"
    )
    assert (code, out.partition("@")[2]) == (0, "other.example:5443\n")
    apns = tomllib.loads((old / "ntf-server.toml").read_text())["apns"]
    assert (apns["key_file"], apns["key_id"], apns["team_id"]) == (key.name, "OTHER", "TEAM")


def test_what_is_not_taken_over_is_told(old: Path, capsys: Capture) -> None:
    (old / "ntf-server.ini").write_text(INI.replace("443", "443,5443") + "[AUTH]\ncontrol_port_user_password = hush\n")
    (old / "vapid.privkey").touch()
    (old / "ca.key").unlink()
    code, _, err = in_process(capsys, "init", "--adopt", old, "--path", old)
    assert code == 0
    assert [line.partition(": ")[2].partition(":")[0] for line in err.splitlines()] == [
        "[TRANSPORT] port",
        "[AUTH] control_port_user_password",
        "--apns-key-file, or $APNS_KEY_FILE of the other server is not given; set [apns] key_file, key_id and team_id"
        f" in {old / 'ntf-server.toml'}.",
        "name it in [web_push] key_file, or its subscriptions are lost",
        "[subscriber] host_mode",
        f"`ntf-server check --path {old}`, then `ntf-server import --path {old} --config {old / 'ntf-server.ini'}`.",
    ]
    assert "hush" not in err


def broken(old: Path, name: str, content: bytes | None) -> None:
    (old / name).unlink()
    if content is not None:
        (old / name).write_bytes(content)


@pytest.mark.parametrize(
    ("spoilt", "arguments", "words"),
    [
        (
            ("ntf-server.ini", None),
            [],
            "ntf-server.ini: No such file or directory; give the reference's",
        ),
        (("ntf-server.ini", b"nonsense\n"), [], "ntf-server.ini: line 1 stands in no section"),
        (("ntf-server.ini", b"[TRANSPORT]\nport = 443\n"), [], "[TRANSPORT] host: names none; give the name"),
        (("server.key", b"rubbish"), [], "server.key: "),
        (("ca.crt", None), [], "ca.crt: No such file or directory; restore it from a copy"),
        (("fingerprint", b"AAAA\n"), [], "fingerprint: is not of "),
        (None, ["--sign-algorithm", "ED448"], "--sign-algorithm: the certificates are there"),
        (
            None,
            ["--apns-key-file", "none.p8", "--apns-key-id", "A"],
            "none.p8: No such file or directory",
        ),
        (None, ["--apns-key-file", "OLD/ca.crt", "--apns-key-id", "A"], "ca.crt: not an unencrypted PEM private key"),
    ],
)
def test_a_folder_that_cannot_be_adopted(
    *, old: Path, tmp_path: Path, spoilt: Any, arguments: list[str], words: str, capsys: Capture
) -> None:
    if spoilt:
        broken(old, *spoilt)
    before = contents(tmp_path)
    given = [a.replace("OLD", str(old)) for a in arguments]
    for directory in (old, tmp_path / "new"):
        code, out, err = in_process(capsys, "init", "--adopt", old, "--path", directory, *given)
        assert (code, out) == (2, "")
        assert words in one_line(err)
        assert contents(tmp_path) == before
        assert not (tmp_path / "new").exists()


def test_keys_of_apple_go_with_adopt(tmp_path: Path, capsys: Capture) -> None:
    code, _, err = in_process(capsys, "init", "--path", tmp_path / "new", "--apns-key-id", "A")
    assert (code, "--apns-key-id: goes with --adopt" in one_line(err)) == (2, True)
    assert not (tmp_path / "new").exists()


def test_init_in_the_folder_of_the_reference_says_how(old: Path, capsys: Capture) -> None:
    code, _, err = in_process(capsys, "init", "--path", old)
    assert code == 2
    assert f"or take over simplexmq's server that is there: --adopt {old}" in one_line(err)
    code, _, err = in_process(capsys, "check", "--path", old)
    assert (code, f"run `ntf-server init --adopt {old} --path {old}`" in one_line(err)) == (2, True)
