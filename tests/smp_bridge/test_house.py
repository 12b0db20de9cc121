"""That the laws of the house are laws: what breaks them is found. And one that holds for smp_bridge alone."""

from pathlib import Path

import house

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "smp_bridge"


def test_clock_and_random_numbers_are_handed_in() -> None:
    """But where an operator's credentials are made or read: `now` may be left out there."""
    assert set(house.untamed(PACKAGE)) == {"identity calls datetime.datetime.now"}


# --- the laws themselves


def package(folder: Path, **files: str) -> Path:
    """A package; `a__b` is the module `a.b`."""
    for name, text in {"__init__": "", **files}.items():
        path = folder / "ours" / (name.replace("__", "/") + ".py" if name.strip("_") == name else f"{name}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "ours"


def test_imports_are_found_however_they_are_written(tmp_path: Path) -> None:
    folder = package(
        tmp_path,
        a="",
        b="import ours.a",
        c="from ours import a, b",
        d="from ours.a import name",
        e="def f():\n    from ours.a import name",
        f="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ours import a",
        g="from . import a\nfrom .b import name",
        h="import json, ours_not, oursa",
        sub__x="from .. import a\nfrom ..b import name\nfrom .y import z",
        sub__y="from ours.sub import x",
    )
    (folder / "sub" / "__init__.py").write_text("from .x import z")
    assert house.imports(folder) == {
        "__init__": set(),
        "a": set(),
        "b": {"a"},
        "c": {"a", "b"},
        "d": {"a"},
        "e": {"a"},
        "f": {"a"},
        "g": {"a", "b"},
        "h": set(),
        "sub": {"sub.x"},
        "sub.x": {"a", "b", "sub.y"},
        "sub.y": {"sub.x"},
    }


def test_a_circle_for_types_is_one(tmp_path: Path) -> None:
    folder = package(
        tmp_path,
        a="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ours.b import B",
        b="from ours.c import C",
        c="from ours.a import A",
    )
    [circle] = house.circles(folder)
    assert set(circle.split(" -> ")) == {"a", "b", "c"}


def test_rows(tmp_path: Path) -> None:
    folder = package(
        tmp_path, a="", b="from ours import a", c="from ours import a, b, d", d="from ours.sub import x", sub__x=""
    )
    assert house.climbs(folder, [["a", "b"], ["c", "d"], ["sub.x"]]) == [
        "c imports d, which does not stand above it",
        "d imports sub.x, which does not stand above it",
    ]
    assert house.climbs(folder, [["sub.x"], ["a", "b"], ["d", "c"]]) == []


def test_what_is_not_in_the_drawing_is_in_it_alone_or_twice(tmp_path: Path) -> None:
    folder = package(tmp_path, a="", b="", sub__x="", other__x="")
    (folder / "sub" / "__init__.py").write_text('"""Nothing."""')
    (folder / "other" / "__init__.py").write_text("from ours.other.x import y")
    assert house.misplaced(folder, [["a", "gone"], ["other.x", "a"]]) == [
        "b is not in the drawing",
        "other is not in the drawing",
        "sub.x is not in the drawing",
        "gone of the drawing is no module",
        "a is in the drawing twice",
    ]
    assert house.misplaced(folder, [["a", "b", "sub.x", "other.x", "other"]]) == []


def test_how_a_drawing_is_read() -> None:
    text = """
others/   not ours
  a  b

ours/     what it is: x y
  a b       primitives, such as c
  sub/ x y  two of a folder
  __init__ up/{s,t}/ z __init__ up/ last
ours_not/  another
  c
"""
    rows = [["a", "b"], ["sub.x", "sub.y"], ["__init__", "up.s.z", "up.t.z", "up.s", "up.t", "up.last"]]
    assert house.drawing("ours", text) == rows
    assert house.drawing("others", text) == [["a"]]
    assert house.drawing("theirs", text) == []


def test_our_other_packages(tmp_path: Path) -> None:
    folder = package(tmp_path, a="import theirs.b\nfrom third import x\nfrom theirs_not import y")
    packages = {"ours": frozenset(["third"]), "theirs": frozenset[str](), "third": frozenset[str]()}
    assert house.foreign(folder, packages) == ["ours.a imports theirs.b"]


def test_lengths(tmp_path: Path) -> None:
    folder = package(tmp_path, a="@x\ndef f():\n    1\n    2\n    3\nasync def g(): pass\n")
    assert house.too_long(folder, 5, 3) == ["a has 6 lines", "a.f has 4 lines"]
    assert house.too_long(folder, 6, 4) == []


def test_calls_of_a_clock(tmp_path: Path) -> None:
    folder = package(tmp_path, a="import time\ndef f(clock=time.time): return clock()", b="x = [time.monotonic()]")
    assert house.untamed(folder) == ["b calls time.monotonic"]


def test_modules_without_tests(tmp_path: Path) -> None:
    does = "def f(): return 1"
    folder = package(
        tmp_path,
        a=does,
        b=does,
        sub__x=does,
        testing__y=does,
        __main__="main()",
        names="X = 1\nclass A:\n    x: int",
        declared='class P:\n    def f(self):\n        """What it does."""\n        ...',
    )
    (folder / "sub" / "__init__.py").write_text('"""Names."""\nfrom ours.sub.x import x\n__all__ = ["x"]\n')
    tests = tmp_path / "tests"
    (tests / "sub").mkdir(parents=True)
    (tests / "test_a.py").touch()
    (tests / "test_x.py").touch()  # at the wrong place
    assert house.untested(folder, tests) == [
        "__main__ has no test_main.py",
        "b has no test_b.py",
        "sub.x has no sub/test_x.py",
    ]
    (folder / "sub" / "__init__.py").write_text("def f(): return 1")
    assert "sub has no sub/test_init.py" in house.untested(folder, tests)


def test_equipment_that_nobody_uses(tmp_path: Path) -> None:
    folder = package(
        tmp_path,
        a="from ours.testing.by_a import x",  # what is no equipment does not count
        testing__used="from ours.testing import below",
        testing__below="import ours.testing.far_below",
        testing__far_below="",
        testing__by_a="",
        testing__plugin="",
        testing__alone="",
    )
    tests = tmp_path / "tests"
    (tests / "testing").mkdir(parents=True)
    (tests / "test_a.py").write_text("from ours import a\nfrom ours.testing.used import x")
    (tests / "testing" / "test_plugin.py").touch()
    assert house.untried(folder, tests) == ["testing.alone is used by no test", "testing.by_a is used by no test"]
