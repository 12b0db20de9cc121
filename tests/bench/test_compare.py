import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import compare
import pytest
from comparison import Figure
from scene import Stage
from wire_benches import BENCHES, Bench, Measure
from wire_relay import RelayError, Side

BIN = Path(sys.executable).parent
OLD, NEW = Side("old", BIN), Side("HEAD", BIN)
FASTER = (Figure("speed", "/s", 1.0, at_least=True),)


class Canned:
    """A bench whose figures are known; `order`: whose turn it was."""

    def __init__(self, old: float, new: float) -> None:
        self.order: list[str] = []
        self._speed = {OLD.name: old, NEW.name: new}

    async def open(self, stage: Stage) -> Measure:
        assert list(stage.sides) == [OLD, NEW]
        assert stage.folder.is_dir()

        async def measure(side: Side) -> Mapping[str, float]:
            self.order.append(side.name)
            return {"speed": self._speed[side.name]}

        return measure


async def fails(stage: Stage) -> Measure:
    raise RelayError("the relay did not start")


async def test_sides_take_turns_and_keep_their_figures(capsys: pytest.CaptureFixture[str]) -> None:
    canned = Canned(10.0, 20.0)
    assert await compare.run("canned", Bench("about", FASTER, canned.open), (OLD, NEW), 3)
    assert canned.order == ["old", "HEAD", "HEAD", "old", "old", "HEAD"]
    assert "2.00 (2.00 to 2.00)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("speeds", "broken", "code", "summary"),
    [
        ([20.0], False, compare.HOLDS, "1 of 1 benches hold\n"),
        ([20.0, 5.0], False, compare.MISSED, "1 of 2 benches hold; missed: canned 1\n"),
        ([20.0], True, compare.NO_TELLING, "1 of 2 benches hold; not measured: broken\n"),
        ([5.0], True, compare.MISSED, "0 of 2 benches hold; missed: canned 0; not measured: broken\n"),
    ],
)
async def test_the_exit_code_tells_whether_all_holds(
    speeds: list[float], broken: bool, code: int, summary: str, capsys: pytest.CaptureFixture[str]
) -> None:
    benches = {"broken": Bench("", FASTER, fails)} if broken else {}
    benches |= {f"canned {i}": Bench("", FASTER, Canned(10.0, new).open) for i, new in enumerate(speeds)}
    assert await compare.run_all(benches, (OLD, NEW), 1) == code
    seen = capsys.readouterr()
    assert seen.out.endswith(summary)
    assert ("could not be measured: the relay did not start" in seen.err) == broken


@pytest.mark.parametrize(
    "arguments",
    [[], ["HEAD", "nonsense"], ["HEAD", "--alternations", "0"], ["HEAD", "--alternations", "x"], ["HEAD", "--fast"]],
)
def test_bad_usage_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        compare.parse(arguments)
    assert e.value.code == compare.NO_TELLING
    assert "usage: bench/compare" in capsys.readouterr().err


def test_benches_may_be_named_after_options() -> None:
    out = compare.parse(["a613638", "--quick", "rate", "--alternations", "2", "cold"])
    assert (out.revision, out.benches, out.alternations, out.quick) == ("a613638", ["rate", "cold"], 2, True)
    assert compare.parse(["a613638"]).benches == list(BENCHES)


def test_a_shallow_history_ends_with_one_line(tmp_path: Path) -> None:
    root, shallow = tmp_path / "repository", tmp_path / "shallow"
    shutil.copytree(Path(compare.__file__).parent, root / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-C", str(root))
    for arguments in (["init", "--quiet"], ["add", "."], *[["commit", "--quiet", "--allow-empty", "-m", "x"]] * 2):
        subprocess.run([*git, *arguments], check=True)
    old = subprocess.run([*git, "rev-parse", "HEAD~"], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", root.as_uri(), str(shallow)], check=True)
    command = [sys.executable, str(shallow / "bench" / "compare.py"), old]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode == compare.NO_TELLING
    assert out.stdout == ""
    [line] = out.stderr.splitlines()
    assert line == f"bench/compare: the history here is shallow and lacks {old}: run `git fetch --unshallow`"


LONG = set(BENCHES) - {"commands", "webpush"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long) if n in LONG else n for n in BENCHES])
async def test_a_bench_measures_real_relays(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = await compare.run_all({name: BENCHES[name]}, (OLD, NEW), 1, quick=True)
    out = capsys.readouterr().out
    assert code in {compare.HOLDS, compare.MISSED}, out  # tiny loads prove nothing but that it was measured
    for figure in BENCHES[name].figures:
        assert f"\n{figure.name}" in out
