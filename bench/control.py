"""Processes that are told what to do: a JSON object a line on standard input, a JSON answer a line on standard output.

The first line that a process prints says that it is ready. It ends when its standard input does.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

_MAX_LINE: Final = 2**24
_STOP_TIMEOUT: Final = 60.0

Command = Callable[..., Any]


class ChildError(Exception):
    """A process ended although nobody had asked it to."""


class Child:
    """The side of the one who asks. `ready`: what the process said first."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.pid = process.pid
        self.ready: Any = None
        self._process = process
        self._turn = asyncio.Lock()

    async def call(self, command: str, **parameters: Any) -> Any:
        """The answer to one command. Raises ChildError."""
        stdin = self._process.stdin
        assert stdin is not None
        async with self._turn:
            stdin.write(json.dumps({"command": command, **parameters}).encode() + b"\n")
            return await self.answer()

    async def answer(self) -> Any:
        """The next line. Raises ChildError."""
        stdout = self._process.stdout
        assert stdout is not None
        line = await stdout.readline()
        if not line:
            raise ChildError(f"{self.name} ended with exit code {await self._process.wait()}")
        return json.loads(line)

    async def stop(self) -> None:
        """Let it end; kill it if it takes too long."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_TIMEOUT)
        except BaseException:
            if self._process.returncode is None:
                self._process.kill()
            raise


@asynccontextmanager
async def child(script: str, *arguments: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Child]:
    """Run a script of this folder until the block ends. Raises ChildError if it does not become ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name(script)), *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
        limit=_MAX_LINE,
        start_new_session=True,  # Ctrl-C is for us alone
    )
    out = Child(script, process)
    try:
        out.ready = await out.answer()
        yield out
    finally:
        await out.stop()


async def obey(commands: Mapping[str, Command], ready: Any) -> None:
    """The side of the process: say `ready`, then answer until standard input ends."""
    reader = asyncio.StreamReader(_MAX_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps(ready), flush=True)
    while line := await reader.readline():
        request = json.loads(line)
        answer = commands[request.pop("command")](**request)
        print(json.dumps(answer), flush=True)


def run(bench: Coroutine[Any, Any, None]) -> None:
    """Run a bench to its end; what goes wrong is one line."""
    try:
        asyncio.run(bench)
    except ChildError as e:
        sys.exit(f"{e}, see above")
    except TimeoutError as e:
        sys.exit(f"not everything came in time: {e}")
