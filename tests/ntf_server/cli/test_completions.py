"""`ntf-server completions`, as a shell uses it."""

import subprocess
from pathlib import Path

import pytest
from command_line import in_process

from ntf_server.cli.main import COMMANDS

# The script in a shell of its own, asked as bash asks when Tab is pressed behind these words.
ASK = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
[[ $(complete -p ntf-server) =~ -F\\ ([^ ]+) ]] && "${BASH_REMATCH[1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    return {}


def script(capsys: pytest.CaptureFixture[str], shell: str, scripts: dict[str, str]) -> str:
    if shell not in scripts:
        code, scripts[shell], err = in_process(capsys, "completions", shell)
        assert (code, err) == (0, "")
    return scripts[shell]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([""], set(COMMANDS)),
        (["tok"], {"tokens"}),
        (["tokens", ""], {"list", "show", "purge", "invalidate"}),
        (["tokens", "invalidate", "--reason", "B"], {"BAD"}),
        (["completions", ""], {"bash", "zsh", "fish"}),
        (["status", "--"], {"--path", "--json", "--ready"}),
        (["status", "--path", "rel"], {"relay"}),
        (["backup", "not"], {"notes"}),
        (["unknown"], set()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash(
    words: list[str],
    wanted: set[str],
    tmp_path: Path,
    scripts: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "script"
    file.write_text(script(capsys, "bash", scripts))
    (tmp_path / "relay").mkdir()
    (tmp_path / "notes").touch()
    asked = ["bash", "--norc", "-c", ASK, "bash", file, "ntf-server", *words]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=True)
    found = {line for line in done.stdout.splitlines() if line}
    assert done.stderr == ""
    assert wanted <= found and (wanted or not found)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_are_told_of_every_command(
    shell: str, scripts: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = script(capsys, shell, scripts)
    assert text.startswith("#compdef ntf-server" if shell == "zsh" else "# AUTOMATICALLY GENERATED")
    assert [name for name in COMMANDS if name not in text] == []
    assert "UNREGISTERED" in text


def test_of_another_shell(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = in_process(capsys, "completions", "tcsh")
    assert (code, out) == (2, "") and "invalid choice: 'tcsh'" in err
