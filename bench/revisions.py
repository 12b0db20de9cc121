"""Revisions of this repository, each in its own clone and with its own environment."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from report import say
from wire_relay import Side, environment

ROOT: Final = Path(__file__).resolve().parents[1]
_SHORT: Final = 10
_LINES: Final = 10


class RevisionError(Exception):
    """One line: a revision cannot be had, and what to do."""


def resolve(revision: str, root: Path = ROOT) -> str:
    """The commit's hash. Raises RevisionError: above all if the history ends before it."""
    if shutil.which("git") is None:
        raise RevisionError("git is not installed: revisions cannot be told apart")
    if _git(root, "rev-parse", "--git-dir").returncode:
        raise RevisionError(f"{root} is no git repository: there is no history to compare with")
    # --end-of-options: what begins with a dash is a revision too, and not there
    found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found.returncode == 0:
        return found.stdout.strip()
    if _git(root, "rev-parse", "--is-shallow-repository").stdout.strip() == "true":
        raise RevisionError(f"the history here is shallow and lacks {revision}: run `git fetch --unshallow`")
    raise RevisionError(f"the history here has no revision {revision}")


def is_modified(root: Path = ROOT) -> bool:
    """Whether there are changes that no commit has, which are not measured."""
    return bool(_git(root, "status", "--porcelain", "--untracked-files=no").stdout.strip())


def side(label: str, commit: str, folder: Path, root: Path = ROOT) -> Side:
    """Clone a commit into `folder`, unless it is there, and make its environment. Raises RevisionError."""
    clone = folder / commit
    if not (clone / ".git").exists():
        _run(["git", "clone", "--quiet", "--no-checkout", str(root), str(clone)], f"cloning {commit[:_SHORT]}")
        _run(["git", "-C", str(clone), "checkout", "--quiet", "--detach", commit], f"checking out {commit[:_SHORT]}")
    if not (clone / "scripts" / "_env.sh").exists():
        raise RevisionError(f"{commit[:_SHORT]} has no scripts/_env.sh, which would make its environment")
    # The interpreter that runs this, so that revisions are all that differs.
    settings = {k: v for k, v in environment().items() if k != "NTF_RELAY_VENV"} | {"PYTHON": _interpreter()}
    script = ". scripts/_env.sh; make_env"
    _run(["bash", "-c", script], f"making the environment of {commit[:_SHORT]}", cwd=clone, settings=settings)
    binaries = clone / ".venv" / "bin"
    _check_origin(binaries, clone)
    return Side(f"{label} {commit[:_SHORT]}" if label else commit[:_SHORT], binaries)


def _interpreter() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _check_origin(binaries: Path, clone: Path) -> None:
    """An environment that leads to another place's code would measure that. Raises RevisionError."""
    code = "import ntf_server; print(ntf_server.__file__)"
    out = subprocess.run(
        [str(binaries / "python"), "-c", code], capture_output=True, text=True, check=False, cwd="/", env=environment()
    )
    if out.returncode or not Path(out.stdout.strip()).resolve().is_relative_to(clone.resolve()):
        raise RevisionError(f"the environment in {binaries.parent} does not run the code of {clone}")


def _git(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)


def _run(command: list[str], what: str, *, cwd: Path | None = None, settings: Mapping[str, str] | None = None) -> None:
    say(what)
    out = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=settings)
    if out.returncode:
        sys.stderr.write("".join(f"    {line}\n" for line in out.stderr.splitlines()[-_LINES:]))
        raise RevisionError(f"{what} failed, see above")
