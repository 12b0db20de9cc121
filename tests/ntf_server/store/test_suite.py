"""The conformance suite on SQLite: in a file, with its threads, and in memory, inline."""

from pathlib import Path

import pytest
from store_media import FileMedium, MemoryMedium

from ntf_server.testing.store_suite import Check, checks, name, run


@pytest.mark.parametrize("kind", ["file", "memory"])
@pytest.mark.parametrize("check", checks(shared=False), ids=name)
async def test_sqlite(check: Check, kind: str, tmp_path: Path) -> None:
    await run(check, FileMedium(tmp_path) if kind == "file" else MemoryMedium())
