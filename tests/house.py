"""The laws of the house, as functions: who may import whom, how long things may be, what has its test.

Each takes a package's folder and gives the offences as lines to read; none: the law holds.
"""

import ast
import graphlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

MAX_MODULE: Final = 500  # lines
MAX_FUNCTION: Final = 70

# The rows of a package's drawing, names of modules in each: a module may import what stands in rows above its own, and
# in its row what stands to its left.
Rows = Sequence[Sequence[str]]

DRAWING: Final = Path(__file__).parents[1] / "docs" / "explanation" / "architecture.md"

# Which of our packages a package may import.
PACKAGES: Final[Mapping[str, frozenset[str]]] = {
    "smp_bridge": frozenset(),
    "ntf_server": frozenset(["smp_bridge"]),
    "ntf_client": frozenset(["smp_bridge"]),
}


def drawing(package: str, text: str | None = None) -> Rows:
    """A package's rows in the drawing of architecture.md, which is the law.

    A line of it: names, two spaces or more, what they are for. `push/` is the folder of the names after it, and
    `push/{apns,fcm}/` both folders, with the same names; `__init__` in a folder is the folder itself.
    """
    rows: list[list[str]] = []
    block = re.search(rf"^{package}/  .*\n((?:  .+\n)+)", DRAWING.read_text() if text is None else text, re.MULTILINE)
    for line in block[1].splitlines() if block else ():
        folders, row = [""], []
        for word in line.strip().split("  ")[0].split():
            if word.endswith("/"):
                folders = _folders(word)
            else:
                row += [f"{folder}{word}".removesuffix(".__init__") for folder in folders]
        rows.append(row)
    return rows


def _folders(word: str) -> list[str]:
    """`a/{b,c}/` is `a.b.` and `a.c.`."""
    before, brace, rest = word.replace("/", ".").partition("{")
    inside, _, after = rest.partition("}")
    return [f"{before}{part}{after}" for part in inside.split(",")] if brace else [before]


@cache
def _tree(text: str) -> ast.Module:
    return ast.parse(text)


def _parse(path: Path) -> ast.Module:
    return _tree(path.read_text())


def modules(package: Path) -> dict[str, Path]:
    """All modules of a package by their names inside it (`push.http`); a folder's `__init__` by the folder's."""
    out = {}
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(package).with_suffix("").parts)
        out[name.removesuffix(".__init__")] = path
    return out


def imports(package: Path) -> dict[str, set[str]]:
    """What each module imports of its own package, in functions and for types too."""
    known = modules(package)
    out: dict[str, set[str]] = {}
    for name, path in known.items():
        found = {_inside(target, package.name, known) for target in _imported(path, name, package.name)}
        out[name] = {f for f in found if f is not None} - {name}
    return out


def _imported(path: Path, name: str, package: str) -> Iterator[str]:
    """The absolute names that a module imports, a name imported from a module as `module.name`."""
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parts = f"{package}.{name}".split(".")
                parts = parts[: len(parts) - node.level + (path.stem == "__init__")]
                module = ".".join([*parts, *module.split(".")]).rstrip(".")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _inside(target: str, package: str, known: Mapping[str, Path]) -> str | None:
    """The module of the package that an imported name is, or is in; None if it is another package's."""
    first, *rest = target.split(".")
    if first != package:
        return None
    while rest and ".".join(rest) not in known:
        rest.pop()
    return ".".join(rest) or "__init__"


def foreign(package: Path, packages: Mapping[str, frozenset[str]] = PACKAGES) -> list[str]:
    """Imports of those of our packages that this one may not import."""
    barred = packages.keys() - packages[package.name] - {package.name}
    return [
        f"{package.name}.{name} imports {target}"
        for name, path in modules(package).items()
        for target in sorted(_imported(path, name, package.name))
        if target.split(".")[0] in barred
    ]


def circles(package: Path) -> list[str]:
    """A circle of imports, if there is any."""
    try:
        graphlib.TopologicalSorter(imports(package)).prepare()
    except graphlib.CycleError as e:
        return [" -> ".join(e.args[1])]
    return []


def climbs(package: Path, rows: Rows) -> list[str]:
    """Imports of what does not stand above, or to the left in the same row."""
    places = _places(rows)
    return [
        f"{name} imports {other}, which does not stand above it"
        for name, imported in imports(package).items()
        for other in sorted(imported)
        if name in places and other in places and places[name] < places[other]
    ]


def misplaced(package: Path, rows: Rows) -> list[str]:
    """Modules that stand nowhere in the drawing, names in it that are no module, and those that stand there twice.

    The `__init__` of a folder needs no place if it imports nothing.
    """
    named, known, imported = [name for row in rows for name in row], modules(package), imports(package)
    needed = [name for name, path in known.items() if path.stem != "__init__" or imported[name]]
    out = [f"{n} is not in the drawing" for n in needed if n not in named]
    out += [f"{n} of the drawing is no module" for n in named if n not in known]
    return out + [f"{n} is in the drawing twice" for n, times in Counter(named).items() if times > 1]


def _places(rows: Rows) -> dict[str, int]:
    return {name: i for i, name in enumerate(name for row in rows for name in row)}


# What must be handed in, for a simulator to be the master of it. As a default of a parameter it may be named.
UNTAMED: Final = frozenset(
    ["time.time", "time.monotonic", "time.perf_counter", "datetime.datetime.now", "random.random", "random.uniform"]
)


def untamed(package: Path, names: frozenset[str] = UNTAMED) -> list[str]:
    """Calls of what should be handed in instead."""
    return [
        f"{name} calls {ast.unparse(node.func)}"
        for name, path in modules(package).items()
        for node in ast.walk(_parse(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names
    ]


def too_long(package: Path, module: int = MAX_MODULE, function: int = MAX_FUNCTION) -> list[str]:
    """Modules and functions with more lines than these."""
    out = []
    for name, path in modules(package).items():
        lines = len(path.read_text().splitlines())
        if lines > module:
            out.append(f"{name} has {lines} lines")
        for node in ast.walk(_parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > function:
                    out.append(f"{name}.{node.name} has {lines} lines")
    return out


def untested(package: Path, tests: Path) -> list[str]:
    """Modules without a test file at the same place.

    None is needed for what does nothing, definitions without a function that has a body, and an `__init__` that only
    names others. Equipment (`testing`) is tried by what uses it: see `untried`.
    """
    out = []
    for name, path in modules(package).items():
        expected = _test_file(package, path)
        if _does_something(path) and not _is_equipment(name) and not (tests / expected).exists():
            out.append(f"{name} has no {expected}")
    return out


def untried(package: Path, tests: Path) -> list[str]:
    """Equipment that has no test file at the same place, and that no test imports, by way of other equipment or not."""
    known, ways = modules(package), imports(package)
    equipment = [name for name in known if _is_equipment(name)]
    waiting = [_inside(target, package.name, known) for target in _imported_by(tests)]
    waiting += [name for name in equipment if (tests / _test_file(package, known[name])).exists()]
    reached = set()
    while waiting:
        name = waiting.pop()
        if name in equipment and name not in reached:
            reached.add(name)
            waiting += ways[name]
    return [f"{name} is used by no test" for name in equipment if name not in reached]


def _imported_by(tests: Path) -> Iterator[str]:
    for path in tests.rglob("*.py"):
        yield from _imported(path, path.stem, "tests")


def _test_file(package: Path, path: Path) -> Path:
    inside = path.relative_to(package)
    return inside.with_name(f"test_{inside.stem.strip('_')}.py")


def _is_equipment(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] == "testing"


def _does_something(path: Path) -> bool:
    """Whether there is more than names, imports, and functions that are only declared."""
    tree = _parse(path)
    if path.stem == "__init__":
        names = (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign)
        return not all(isinstance(node, names) for node in tree.body)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    calls = [node for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    return bool(calls) or any(not _is_declared(function) for function in functions)


def _is_declared(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A docstring or `...`, as in a protocol."""
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in function.body)
