import subprocess
from pathlib import Path

import pytest
import revisions
from revisions import RevisionError

# Like scripts/_env.sh, without what must be fetched.
ENVIRONMENT = """
make_env() {
    "$PYTHON" -m venv --without-pip .venv
    echo "$PWD" >"$(echo .venv/lib/python*/site-packages)/project.pth"
}
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "change")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def history(tmp_path: Path) -> tuple[Path, str, str]:
    """A repository and its two commits."""
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "--quiet")
    files = {"scripts/_env.sh": ENVIRONMENT, "ntf_server/__init__.py": "NUMBER = 1\n"}
    return root, commit(root, files), commit(root, {"ntf_server/__init__.py": "NUMBER = 2\n"})


def number(side: revisions.Side) -> str:
    """What the code of that environment says."""
    command = [str(side.bin / "python"), "-c", "import ntf_server; print(ntf_server.NUMBER)"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout.strip()


def test_a_revision_is_a_commit(history: tuple[Path, str, str]) -> None:
    root, first, second = history
    assert revisions.resolve("HEAD~", root) == revisions.resolve(first[:8], root) == first
    assert revisions.resolve("HEAD", root) == second


@pytest.mark.parametrize("revision", ["0123456789", "--all", "HEAD:scripts", ""])
def test_what_the_history_does_not_have_is_told_in_one_line(history: tuple[Path, str, str], revision: str) -> None:
    with pytest.raises(RevisionError, match=r"^the history here has no revision .*$"):
        revisions.resolve(revision, history[0])


def test_a_shallow_history_is_told_with_what_to_do(history: tuple[Path, str, str], tmp_path: Path) -> None:
    root, first, second = history
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth", "1", root.as_uri(), str(shallow))
    assert revisions.resolve("HEAD", shallow) == second
    with pytest.raises(RevisionError, match=rf"^the history here is shallow and lacks {first}: run .*unshallow`$"):
        revisions.resolve(first, shallow)


def test_a_folder_without_history_is_told(tmp_path: Path) -> None:
    with pytest.raises(RevisionError, match="is no git repository"):
        revisions.resolve("HEAD", tmp_path)


def test_changes_without_a_commit_are_seen(history: tuple[Path, str, str]) -> None:
    root = history[0]
    assert not revisions.is_modified(root)
    (root / "ntf_server/__init__.py").write_text("NUMBER = 3\n")
    assert revisions.is_modified(root)


def test_each_revision_has_its_own_code_and_environment(
    history: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, first, second = history
    monkeypatch.setenv("PYTHONPATH", str(root))  # which would lead both to one
    monkeypatch.setenv("NTF_RELAY_VENV", str(tmp_path / "elsewhere"))
    old, new = (revisions.side(label, c, tmp_path / "sides", root) for label, c in (("", first), ("HEAD", second)))
    monkeypatch.delenv("PYTHONPATH")
    assert (old.name, new.name) == (first[:10], f"HEAD {second[:10]}")
    assert (number(old), number(new)) == ("1", "2")
    assert not (tmp_path / "elsewhere").exists()
    assert revisions.side("", first, tmp_path / "sides", root) == old  # what is there is used


def test_an_environment_of_other_code_is_refused(history: tuple[Path, str, str], tmp_path: Path) -> None:
    root = history[0]
    wrong = commit(root, {"scripts/_env.sh": ENVIRONMENT.replace("$PWD", str(root))})
    with pytest.raises(RevisionError, match="does not run the code of"):
        revisions.side("", wrong, tmp_path / "sides", root)


def test_a_revision_from_before_environments_is_refused(history: tuple[Path, str, str], tmp_path: Path) -> None:
    root = history[0]
    git(root, "rm", "--quiet", "scripts/_env.sh")
    with pytest.raises(RevisionError, match=r"has no scripts/_env\.sh"):
        revisions.side("", commit(root, {}), tmp_path / "sides", root)


def test_an_environment_that_cannot_be_made_is_told(
    history: tuple[Path, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = history[0]
    broken = commit(root, {"scripts/_env.sh": "make_env() { echo 'no index here' >&2; return 1; }\n"})
    with pytest.raises(RevisionError, match=r"making the environment of .* failed, see above"):
        revisions.side("", broken, tmp_path / "sides", root)
    assert "no index here" in capsys.readouterr().err
