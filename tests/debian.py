"""Programs of Debian's that some tests run: on PATH, or where `scripts/test --all` has unpacked them."""

import os
import shutil
from pathlib import Path
from typing import Final

_UNPACKED: Final = "NTF_RELAY_PACKAGES"


def unpacked() -> Path | None:
    """The folder in which the packages' files are, if there is one."""
    folder = os.environ.get(_UNPACKED)
    return Path(folder) if folder else None


def program(name: str) -> Path:
    """Raises AssertionError."""
    if found := shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
        return Path(found)
    raise AssertionError(f"there is no {name}: `scripts/test --all` takes Debian's; elsewhere install it")


def files(pattern: str) -> list[Path]:
    """Of packages, unpacked or installed. `pattern`: without the first slash."""
    return [found for root in (unpacked(), Path("/")) if root for found in root.glob(pattern)]
