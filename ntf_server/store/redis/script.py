"""Lua scripts that Redis runs: files whose heads name what they take."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

FOLDER: Final = Path(__file__).with_name("lua")
PRELUDE: Final = "prelude"  # functions that several scripts share; it goes in front of each of them
_SHEBANG: Final = "#!"
_NO_OTHERS: Final = "It uses no other keys."


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
        """`NAME.lua` of the folder, behind `prelude.lua` if there is one. Raises OSError."""
        prelude = folder / f"{PRELUDE}.lua"
        shared = prelude.read_text().rstrip("\n") + "\n" if prelude.exists() else ""
        return cls(name, (folder / f"{name}.lua").read_text(), prelude=shared)


def _split(text: str) -> tuple[str, str]:
    """The first line, if it is one for Redis (`#!lua …`), and what follows."""
    if not text.startswith(_SHEBANG):
        return "", text
    first, _, rest = text.partition("\n")
    return f"{first}\n", rest


def _flags(first: str) -> Sequence[str]:
    for word in first.split():
        if word.startswith("flags="):
            return tuple(word.removeprefix("flags=").split(","))
    return ()
