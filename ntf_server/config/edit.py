"""A setting written into `ntf-server.toml`, and nothing else in it changed: comments and order stay.

tomllib only reads. So lines are replaced or added, and what the file says then is read again and compared: a file that
is written in a way that this does not know is left alone.
"""

import copy
import json
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ntf_server.config.identity_files import write_file

Value = str | int | list[str]

_HEADER: Final = re.compile(r"\s*\[")


class EditError(Exception):
    """It cannot be done; the lines that would have been written."""


def editing(file: Path, section: str, values: Mapping[str, Value]) -> Callable[[], None]:
    """What writes these values into the file, which is read and tried now, and keeps its rights.

    Raises EditError, OSError; so does what is given back.
    """
    file = file.resolve()  # not over a link
    text = edited(file.read_bytes().decode("utf-8-sig"), section, values)
    return lambda: write_file(file, text.encode(), stat.S_IMODE(file.stat().st_mode))


def named(path: Path, directory: Path) -> str:
    """A file as a setting names it: from the configuration's folder on, if it is in there."""
    path, folder = path.resolve(), directory.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def edited(text: str, section: str, values: Mapping[str, Value]) -> str:
    """The file with these values of a section. Raises EditError."""
    wanted = tomllib.loads(text)
    before = copy.deepcopy(wanted)
    wanted.setdefault(section, {}).update(values)
    lines = text.splitlines(keepends=True)
    new = [f"{key} = {toml(value)}\n" for key, value in values.items()]
    out = "".join(_with(lines, section, new, [*values], before))
    try:
        if tomllib.loads(out) == wanted:
            return out
    except tomllib.TOMLDecodeError:
        pass
    raise EditError(f"[{section}] " + ", ".join(line.strip() for line in new))


def toml(value: Value) -> str:
    """TOML takes what JSON has of these, but for a character that is escaped in it."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _with(
    lines: list[str], section: str, new: list[str], keys: Sequence[str], before: Mapping[str, Any]
) -> Iterator[str]:
    """Lines: the new ones stand at the top of the section, the old ones of these keys do not."""
    header = re.compile(rf"\s*\[\s*{re.escape(section)}\s*\]\s*(#.*)?$")
    at = next((n for n, line in enumerate(lines) if header.match(line.rstrip("\r\n"))), None)
    if at is None:
        end = "" if not lines or lines[-1].endswith("\n") else "\n"
        yield from [*lines, f"{end}\n[{section}]\n", *new]
        return
    yield from lines[: at + 1]
    yield "" if lines[at].endswith("\n") else "\n"
    yield from new
    rest = iter(range(at + 1, len(lines)))
    inside = True
    for n in rest:
        inside = inside and not _HEADER.match(lines[n])
        key = re.match(r"\s*([A-Za-z0-9_-]+)\s*=", lines[n]) if inside else None
        if key is None or key[1] not in keys:
            yield lines[n]
            continue
        value = before.get(section, {}).get(key[1])
        whole = lines[n]
        while not _says(whole, key[1], value):  # over several lines
            following = next(rest, None)
            if following is None:
                return
            whole += lines[following]


def _says(text: str, key: str, value: object) -> bool:
    try:
        return tomllib.loads(text) == {key: value}
    except tomllib.TOMLDecodeError:
        return False
