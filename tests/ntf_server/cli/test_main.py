"""`ntf-server`: usage."""

import subprocess
from pathlib import Path

import pytest
from command_line import COMMAND, in_process, one_line

from ntf_server.cli.main import COMMANDS
from ntf_server.version import VERSION


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["start", "--unknown"],
        ["start", "extra"],
        ["init", "--port", "x"],
        ["init", "--port", "0"],
        ["init", "--port", "-1"],
        ["init", "--port", "65536"],
        ["init", "--port", "\N{SUPERSCRIPT TWO}"],
        ["init", "--port", ""],
        ["init", "--ip", "ntf.example.org"],
        ["init", "--ip", "127.1"],
        ["init", "--ip", "fe80::1%eth0"],
        ["init", "--fqdn", "a b"],
        ["init", "--fqdn", "a,b"],
        ["init", "--fqdn", "a:443"],
        ["init", "--fqdn", "a/b"],
        ["init", "--fqdn", "b\xfccher.example"],
        ["init", "--fqdn", "a" * 65],
        ["init", "--sign-algorithm", "RSA"],
        ["init", "--sign-algorithm", "ed448"],
        ["cert", "--fqdn", "a b"],
        ["cert", "--sign-algorithm", "x"],
        ["delete", "--no"],
        ["check", "--yes"],
        ["demo", "--path", "x"],
    ],
    ids=" ".join,
)
def test_bad_usage(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NTF_SERVER_CFG_PATH", str(tmp_path / "relay"))
    code, out, err = in_process(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "error: " in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["init", "start", "cert", "check", "delete", "demo"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(capsys, command, "--help")[0] == 0


@pytest.mark.parametrize("command", ["start", "check", "delete"])
def test_a_folder_without_configuration(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = in_process(capsys, command, "--path", tmp_path)
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'ntf-server.toml'}: not found" in one_line(err)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(capsys, "--version") == (0, f"ntf-server {VERSION}\n", "")


def test_every_command_is_a_module_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = in_process(capsys, "--help")
    assert code == 0
    for name, text in COMMANDS.items():
        assert f"    {name}" in out
        assert text in " ".join(in_process(capsys, name, "--help")[1].split())


def test_a_reader_that_has_enough() -> None:
    """`ntf-server … | head -1`: nothing is said of it."""
    command = " ".join([*COMMAND, "completions", "zsh"])
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1"], capture_output=True, text=True, timeout=30, check=True
    )
    assert (done.stdout, done.stderr) == ("#compdef ntf-server\n", "")
