"""A relay of any revision, as operators run it: `ntf-server` of that revision's environment, and its wire.

Nothing of its code is imported here: what is known of it are its command, its configuration and the kernel's figures.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smp_bridge.address import ServerAddress

CONFIG_FILE: Final = "ntf-server.toml"
OPTIONAL: Final = ("[limits]\nenabled = false\n",)  # what later revisions need, and earlier ones do not know
_RATES: Final = (
    "handshakes",
    "handshakes_per_address",
    "commands",
    "commands_per_session",
    "commands_per_address",
    "registrations",
    "registrations_per_address",
    "connects",
    "connects_per_destination",
)
# On, and so large that no load is delayed: what they cost is measured.
BUDGETS: Final = ("[limits]\n" + "".join(f'{rate} = "9999999 + 999999/s"\n' for rate in _RATES),)
_START_TIMEOUT: Final = 60.0
_STOP_TIMEOUT: Final = 60.0
_LOG_LINES: Final = 5
_TICK: Final = os.sysconf("SC_CLK_TCK")


class RelayError(Exception):
    """A relay cannot be set up or does not start: one line, then the end of what it said."""


@dataclass(frozen=True, slots=True)
class Side:
    """A revision: how it is called in tables, and the `bin` folder of its environment.

    `sections`: of TOML, that this side's relays have beside those of the bench.
    """

    name: str
    bin: Path
    sections: tuple[str, ...] = ()

    async def command(self, *arguments: str) -> tuple[int, str, str]:
        """Run `ntf-server` to its end: exit code, output, errors."""
        process = await asyncio.create_subprocess_exec(
            str(self.bin / "ntf-server"),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
            cwd="/",
        )
        output, errors = await process.communicate()
        return await process.wait(), output.decode(), errors.decode()


def environment() -> dict[str, str]:
    """This process's, without what would lead a relay to other settings or to other code."""
    unwanted = ("NTF_SERVER_", "PYTHON", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}


@dataclass(frozen=True, slots=True)
class Folder:
    """Configuration, identity and database of a relay; `key_hash` of its address."""

    path: Path
    key_hash: bytes


async def new_folder(side: Side, path: Path, sections: Sequence[str], optional: Sequence[str] = OPTIONAL) -> Folder:
    """A new relay with these sections of TOML, and those optional ones that its `ntf-server check` takes.

    Raises RelayError.
    """
    code, output, errors = await side.command(
        *("init", "--path", str(path), "--fqdn", "localhost", "--sign-algorithm", "ED25519")
    )
    if code:
        raise RelayError(_told(f"ntf-server init of {side.name} failed", errors))
    accepted = list(sections)
    if error := await _refused(side, path, accepted):
        raise RelayError(_told(f"{side.name} does not take the configuration", error))
    for section in optional:
        if not await _refused(side, path, [*accepted, section]):
            accepted.append(section)
    _write(path, accepted)
    return Folder(path, ServerAddress.from_text(output.split()[-1]).key_hash)


async def _refused(side: Side, path: Path, sections: Sequence[str]) -> str:
    """What `ntf-server check` has against this configuration; empty if nothing."""
    _write(path, sections)
    code, _, errors = await side.command("check", "--path", str(path))
    return (errors.strip() or f"exit code {code}") if code else ""


def _write(path: Path, sections: Sequence[str]) -> None:
    (path / CONFIG_FILE).write_text("\n".join(sections))


def _told(what: str, output: str) -> str:
    return "\n".join([what, *(f"    {line}" for line in output.splitlines()[-_LOG_LINES:])])


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: `rss` in memory, `anon` of them that are no pages of files (RssAnon of proc(5))."""

    rss: int
    anon: int


@dataclass(frozen=True, slots=True)
class Running:
    """A started relay. Figures are of its process and all that descend from it. `started`: time.monotonic."""

    pid: int
    address: ServerAddress
    started: float

    def cpu(self) -> float:
        """User and system seconds so far, those of ended threads included, in steps of 10 ms."""
        seconds = 0.0
        for pid in processes(self.pid):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / _TICK
        return seconds

    def memory(self) -> Memory:
        """Now."""
        rss = anon = 0
        for pid in processes(self.pid):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            fields = dict(line.split(":", 1) for line in lines)
            rss += int(fields["VmRSS"].split()[0]) * 1024
            anon += int(fields["RssAnon"].split()[0]) * 1024
        return Memory(rss, anon)


def processes(pid: int) -> Iterator[int]:
    """A process and its descendants, as far as threads that still run started them."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for descendant in (task / "children").read_text().split():
            yield from processes(int(descendant))


@asynccontextmanager
async def running(side: Side, folder: Folder) -> AsyncIterator[Running]:
    """`ntf-server start` until the block ends. Raises RelayError if it does not listen in time, or ended before."""
    log, started = folder.path / "log", time.monotonic()
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(str(side.bin / "ntf-server"), "start", "--path", str(folder.path)),
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=environment(),
            cwd="/",
            start_new_session=True,  # Ctrl-C is for us alone
        )
    try:
        port = await _listening(process)
        if port is None:
            raise RelayError(_told(f"{side.name} did not start", log.read_text(errors="replace")))
        yield Running(process.pid, ServerAddress("ntf", ("127.0.0.1",), port, folder.key_hash), started)
        if process.returncode is not None:
            raise RelayError(_told(f"{side.name} ended in the middle", log.read_text(errors="replace")))
    finally:
        await _stop(process)


async def _listening(process: asyncio.subprocess.Process) -> str | None:
    """The port; None if it does not come to listen."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_TIMEOUT):
            while line := (await process.stdout.readline()).decode():
                if line.startswith("listening on "):
                    return line.strip().rpartition(":")[2]
    except TimeoutError:
        pass
    return None


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_TIMEOUT)
    except BaseException:
        if process.returncode is None:
            process.kill()
        raise
