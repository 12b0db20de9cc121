"""A folder as `init` leaves it, and servers that run in it."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from archive_world import folder
from command_line import COMMAND


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder as `init` leaves it, for a server on any free port of loopback."""
    return folder(tmp_path / "relay", 0, **{'# bind = ""  ': 'bind = "127.0.0.1"'})


Start = Callable[..., Any]


@pytest.fixture
async def start(made: Path) -> AsyncIterator[Start]:
    """Starts servers: (process, port), when they listen."""
    processes = []

    async def start_server(directory: Path = made, **environ: str) -> tuple[asyncio.subprocess.Process, int]:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "start", "--path", str(directory), env=os.environ | environ, stdout=-1, stderr=-1
        )
        processes.append(process)
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        found = re.fullmatch(rb"listening on 127\.0\.0\.1:(\d+)\n", line)
        assert found, line
        return process, int(found[1])

    yield start_server
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()
