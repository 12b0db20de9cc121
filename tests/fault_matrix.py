"""docs/reference/fault-matrix.md: what the tests of faults saw, written by `scripts/fault-matrix`."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/reference/fault-matrix.md"
VARIABLE = "NTF_RELAY_WRITE_FAULT_MATRIX"
PROVIDERS = ("APNs", "FCM", "Web Push")
_HEAD = """# Fault matrix

Each fault was made by a mock of the provider and met by a whole relay; each cell is what a test saw: how often the
wake-up reached the device, and the token's status afterwards. `tests/test_faults.py` makes the faults, and fails
where a cell is not what it sees; `scripts/fault-matrix` writes this page.

*Twice* stands where the provider took the push, but its answer was lost: the relay cannot know, and pushes again.
*Never* stands where the time to live was over.

"""


class Matrix:
    """By fault and provider what was seen; checked against the page, or collected to be written."""

    def __init__(self, titles: Sequence[str]) -> None:
        self._seen: dict[tuple[str, str], str] = {}
        self._titles = titles
        self._writing = bool(os.environ.get(VARIABLE))
        self._page = {} if self._writing else read_page()
        self.on_page = set(self._page) or {(title, provider) for title in titles for provider in PROVIDERS}

    def record(self, title: str, provider: str, seen: str) -> None:
        """A test saw this."""
        assert title in self._titles
        self._seen[title, provider] = seen
        if not self._writing:
            assert self._page.get((title, provider)) == seen, "the page is out of date: run scripts/fault-matrix"

    def write(self) -> None:
        """Write the page, if that is wanted and every test of it ran."""
        cells = [(title, provider) for title in self._titles for provider in PROVIDERS]
        if not self._writing or not all(cell in self._seen for cell in cells):
            return
        rows = [("Fault", *PROVIDERS), ("---",) * 4]
        rows += [(title, *(self._seen[title, p] for p in PROVIDERS)) for title in self._titles]
        PAGE.write_text(_HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows))


def read_page() -> dict[tuple[str, str], str]:
    """Its cells, by fault and provider."""
    rows = re.findall(r"^\| (.+) \|$", PAGE.read_text(), re.MULTILINE)[2:]
    cells = [row.split(" | ") for row in rows]
    return {(title, provider): cell for title, *row in cells for provider, cell in zip(PROVIDERS, row, strict=True)}
