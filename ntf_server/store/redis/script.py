"""Lua scripts that Redis runs: files whose heads name what they take."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

FOLDER: Final = Path(__file__).with_name("lua")
PRELUDE: Final = "prelude"  # functions that several scripts share; those that a script needs go in front of it
_SHEBANG: Final = "#!"
_WORD: Final = re.compile(r"[A-Za-z_]\w*")
_NO_CODE: Final = re.compile(r"--.*|'[^'\n]*'")
_DEFINED: Final = re.compile(r"^local (?:function )?([\w, ]+)", re.MULTILINE)
_NO_OTHERS: Final = "It uses no other keys."
# In front of a script that makes keys: while its slot moves to another server, what is not here ends it, and this is
# never here. So it ends before it has written anything, and is done when all of the slot is there.
_WHOLE: Final = "redis.call('EXISTS', KEYS[1] .. ':')\n"


def scripts(folder: Path = FOLDER) -> list[str]:
    """Names of all that there are."""
    return sorted(path.stem for path in folder.glob("*.lua") if path.stem != PRELUDE)


class Script:
    """A script's name, for people; `text`, as it is sent; `sha1` of that, as Redis names it.

    `flags` are those of its first line (`#!lua flags=allow-oom,no-writes`). `writes` tells that it may change
    something, which is so unless the flag `no-writes` says that it does not; `makes_keys` that it may use keys which
    it makes from those that it is given, unless it says `It uses no other keys.`
    """

    __slots__ = ("flags", "makes_keys", "name", "sha1", "text", "writes")

    def __init__(self, name: str, text: str, *, prelude: str = "") -> None:
        first, rest = _split(text)
        self.name: Final = name
        self.text: Final = f"{first}{prelude}{rest}"
        self.sha1: Final = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        self.flags: Final = _flags(first)
        self.writes: Final = "no-writes" not in self.flags
        self.makes_keys: Final = _NO_OTHERS not in text

    def __repr__(self) -> str:
        return f"Script({self.name!r})"

    @classmethod
    def load(cls, name: str, folder: Path = FOLDER) -> Self:
        """`NAME.lua` of the folder, behind what it needs of `prelude.lua` if there is one. Raises OSError."""
        text = (folder / f"{name}.lua").read_text()
        prelude = folder / f"{PRELUDE}.lua"
        shared = _needed(prelude.read_text(), text) if prelude.exists() else ""
        return cls(name, text, prelude=shared if _NO_OTHERS in text else _WHOLE + shared)


def _split(text: str) -> tuple[str, str]:
    """The first line, if it is one for Redis (`#!lua …`), and what follows."""
    if not text.startswith(_SHEBANG):
        return "", text
    first, _, rest = text.partition("\n")
    return f"{first}\n", rest


def _needed(prelude: str, text: str) -> str:
    """The paragraphs of the prelude that define what the script uses, or what one of these uses.

    What Redis's Lua has in memory makes each script dearer that allocates there: of all scripts with all of the prelude
    that was a fifth of a push.
    """
    chosen: list[str] = []
    words = _words(text)
    for paragraph in reversed(prelude.strip("\n").split("\n\n")):
        if words.intersection(name for names in _DEFINED.findall(paragraph) for name in _WORD.findall(names)):
            words |= _words(paragraph)
            chosen.append(paragraph + "\n")
    return "".join(reversed(chosen))


def _words(lua: str) -> set[str]:
    """Names that it uses: those in comments and strings are none."""
    return set(_WORD.findall(_NO_CODE.sub("", lua)))


def _flags(first: str) -> Sequence[str]:
    for word in first.split():
        if word.startswith("flags="):
            return tuple(word.removeprefix("flags=").split(","))
    return ()
