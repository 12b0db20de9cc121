"""`ntf-server init`."""

import shutil
import socket
from pathlib import Path

import pytest
from command_line import contents, in_process, one_line, run

from ntf_server.cli import init
from ntf_server.config import files as config
from ntf_server.config.identity_files import FILES
from smp_bridge.address import ServerAddress


def test_init(tmp_path: Path) -> None:
    directory = tmp_path / "some" / "folder"
    done = run("init", "--path", directory, "--fqdn", "ntf.example.org")
    key_hash = (directory / "fingerprint").read_text().strip()
    assert (done.returncode, done.stdout) == (0, f"ntf://{key_hash}@ntf.example.org\n")
    assert f"Move {directory / 'ca.key'} offline" in done.stderr
    assert {f.name for f in directory.iterdir()} == {*FILES, config.CONFIG_FILE}
    loaded = config.load(directory, {})
    assert (loaded.settings.transport.host, loaded.settings.transport.port) == ("ntf.example.org", 443)
    assert loaded.credentials.key_hash == ServerAddress.from_text(done.stdout.strip()).key_hash


def test_init_on_a_machine_without_a_public_name(tmp_path: Path) -> None:
    for i, (host, told) in enumerate([("localhost", True), ("192.168.1.2", True), ("ntf.example.org", False)]):
        done = run("init", "--path", tmp_path / str(i), "--fqdn", host)
        assert done.returncode == 0
        assert (f"Apps elsewhere do not reach {host}: give the server's name by --fqdn." in done.stderr) == told


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (["--fqdn", "ntf.example.org", "--port", "5443"], "ntf.example.org:5443"),
        (["--fqdn", "ntf.example.org", "--port", "443"], "ntf.example.org"),
        (["--fqdn", "ntf.example.org", "--ip", "192.0.2.1"], "ntf.example.org"),
        (["--ip", "192.0.2.1"], "192.0.2.1"),
        (["--ip", "2001:db8::1"], "[2001:db8::1]"),
        (["--ip", "2001:db8:0::1", "--port", "5443"], "[2001:db8::1]:5443"),
        (["--fqdn", "[2001:db8::1]", "--port", "5443"], "[2001:db8::1]:5443"),
    ],
)
@pytest.mark.parametrize("algorithm", ["ED448", "ED25519"])
def test_the_address_of_init_is_that_of_check(
    *, tmp_path: Path, arguments: list[str], address: str, algorithm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = in_process(capsys, "init", "--path", tmp_path, *arguments, "--sign-algorithm", algorithm)
    assert code == 0
    assert out.endswith(f"@{address}\n")
    code, checked, err = in_process(capsys, "check", "--path", tmp_path)
    assert (code, err) == (0, "")
    assert f"address     {out}" in checked


@pytest.mark.parametrize("present", [*FILES, config.CONFIG_FILE])
def test_init_never_overwrites(tmp_path: Path, present: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / present).write_text("precious")
    code, out, err = in_process(capsys, "init", "--path", tmp_path, "--fqdn", "localhost")
    assert (code, out) == (2, "")
    assert f"{tmp_path / present}: is there already, and is kept; give a new folder by --path" in one_line(err)
    assert contents(tmp_path) == {present: b"precious"}


def test_init_where_nothing_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    code, out, err = in_process(capsys, "init", "--path", tmp_path / "file" / "relay", "--fqdn", "localhost")
    assert (code, out) == (2, "")
    assert "choose a folder that can be written" in one_line(err)


def test_a_machine_whose_name_is_no_host_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "my machine")
    code, out, err = in_process(capsys, "init", "--path", tmp_path / "relay")
    assert (code, out) == (2, "")
    assert "give --fqdn or --ip" in one_line(err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "contact"),
    [
        (["--fqdn", "ntf.example.org"], "mailto:postmaster@ntf.example.org"),
        (["--fqdn", "ntf.local"], ""),
        (["--fqdn", "localhost"], ""),
        (["--ip", "192.0.2.1"], ""),
        (["--ip", "2001:db8::1"], ""),
    ],
)
def test_web_push_is_on_where_push_services_can_reach_somebody(
    *,
    tmp_path: Path,
    arguments: list[str],
    contact: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(init, "default_ca_file", lambda: str(tmp_path / "ca.pem"))
    monkeypatch.setenv("NTF_SERVER__WEB_PUSH__CA_FILE", str(tmp_path / "ca.pem"))
    directory = tmp_path / "relay"
    assert in_process(capsys, "init", "--path", directory, *arguments)[0] == 0
    shutil.copy(directory / "ca.crt", tmp_path / "ca.pem")
    loaded = config.load(directory)
    assert loaded.settings.web_push.contact == contact
    assert (loaded.vapid_key is not None) == bool(contact)
    assert ("WP; apps subscribe" in in_process(capsys, "check", "--path", directory)[1]) == bool(contact)
