"""The operator's side of a running relay: a Unix socket that only its own user and root may speak to.

A request is a line of JSON, `{"command": NAME, …}`; so is its answer: `{"ok": true, …}` or
`{"ok": false, "error": TEXT, "final": BOOL}`. A connection takes any number of them, one after the other.
"""

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from ntf_server.config.files import socket_path_error
from ntf_server.listener import ListenError
from ntf_server.permissions import unwritable
from ntf_server.store.contract import StoreError

log = logging.getLogger(__name__)

MAX_LINE: Final = 64 * 1024  # bytes, of a request or an answer
MAX_CONNECTIONS: Final = 16
IDLE: Final = 10.0  # seconds for a request to come, and for an answer to be taken
WORK: Final = 120.0  # seconds for a command
_ROOT: Final = 0
_PEER: Final = struct.Struct("3i")  # pid, uid, gid (unix(7): SO_PEERCRED)

Handler = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


class AdminError(Exception):
    """One line: why a running relay did not do what it was asked for."""


class NotRunningError(AdminError):
    """Nobody listens there."""


class RefusedError(AdminError):
    """No retry mends it: the operator has to."""


class AdminSocket:
    """The socket and the connections on it. `start` it in a running loop; `close` it.

    `commands`: by name; each gets the request and gives what its answer holds. `idle` and `work` in seconds.
    """

    def __init__(self, path: Path, commands: Mapping[str, Handler], *, idle: float = IDLE, work: float = WORK) -> None:
        self._path = path
        self._commands = commands
        self._idle = idle
        self._work = work
        self._server: asyncio.Server | None = None
        self._inode: tuple[int, int] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; a socket that nobody listens on any more is replaced. Raises ListenError."""
        bound = bind(self._path, "[admin] socket")
        try:
            self._inode = identity(self._path)
            self._server = await asyncio.start_unix_server(self._on_connected, sock=bound, limit=MAX_LINE)
        except OSError as e:
            bound.close()
            raise ListenError(f"{self._path}: {e.strerror or e}") from e
        except BaseException:
            bound.close()
            raise

    async def close(self) -> None:
        """Stop accepting, disconnect all, remove the file."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections))
        remove(self._path, self._inode)

    def _on_connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS or not _may_ask(writer.get_extra_info("socket")):
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._run(reader, writer), name="admin socket")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                async with asyncio.timeout(self._idle):
                    line = await reader.readline()
                if not line.endswith(b"\n"):
                    return
                answer = await self._answer_to(line)
                async with asyncio.timeout(self._idle):
                    writer.write(msgspec.json.encode(answer) + b"\n")
                    await writer.drain()
        except ValueError:  # a line that is too long: what follows cannot be told from it
            writer.write(msgspec.json.encode(_failure(f"more than {MAX_LINE} bytes")) + b"\n")
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(self._idle):
                    await writer.drain()
        except (OSError, TimeoutError) as e:
            log.debug("an operator's connection came to nothing: %s", type(e).__name__)
        except Exception:
            log.exception("an operator's connection failed")
        finally:
            writer.close()

    async def _answer_to(self, line: bytes) -> Mapping[str, Any]:
        try:
            request = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _failure("not JSON")
        name = request.get("command") if isinstance(request, dict) else None
        if not isinstance(name, str):
            return _failure("no command")
        handler = self._commands.get(name)
        if handler is None:
            return _failure(f"unknown command; there are {', '.join(sorted(self._commands))}")
        try:
            async with asyncio.timeout(self._work):
                return {"ok": True, **await handler(request)}
        except AdminError as e:
            return _failure(str(e), final=isinstance(e, RefusedError))
        except TimeoutError:
            return _failure(f"not done within {self._work:g} s")
        except Exception:
            log.exception("the command %s failed", name)
            return _failure("it failed; the server's log says why")


@contextlib.contextmanager
def asked_of_the_store() -> Iterator[None]:
    """For handlers: what the store says of itself is told to who asked. Raises AdminError."""
    try:
        yield
    except StoreError as e:
        raise AdminError(str(e)) from e


def after_of(request: Mapping[str, Any]) -> str | None:
    """Where the answer before ended, None: this is the first. Raises AdminError."""
    after = request.get("after")
    if after is not None and not isinstance(after, str):
        raise AdminError("after: must be the next of the answer before")
    return after


def bind(path: Path, setting: str, mode: int = 0o600) -> socket.socket:
    """A socket there, for whom `mode` lets in; one that nobody listens on any more is replaced. Raises ListenError."""
    if error := socket_path_error(path, setting):
        raise ListenError(error)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        _remove_stale(path)
        bound.bind(os.fspath(path))
        path.chmod(mode)  # nobody can connect before somebody listens
    except OSError as e:
        bound.close()
        why = unwritable(path.parent, setting) or e.strerror or e
        raise ListenError(f"{path}: {why}") from e
    return bound


def remove(path: Path, inode: tuple[int, int] | None) -> None:
    """A socket's file, if it is still the one with this `identity`."""
    with contextlib.suppress(OSError):
        if inode is not None and identity(path) == inode:  # else it is another's
            path.unlink()


def check_path(path: Path, setting: str = "[admin] socket") -> None:
    """Raises ListenError if `bind` would; makes nothing, and leaves a stale socket."""
    try:
        _is_stale(path)
    except OSError as e:
        raise ListenError(f"{path}: {e.strerror or e}") from e
    if (barred := unwritable(path.parent, setting)) is not None:
        raise ListenError(f"{path}: {barred}")


def ask(path: Path, command: str, *, timeout: float = WORK, **arguments: Any) -> dict[str, Any]:
    """Have a running relay do something; its answer. Blocks. Raises AdminError."""
    if error := socket_path_error(path):
        raise AdminError(error)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as s:
            s.settimeout(timeout)
            s.connect(os.fspath(path))
            s.sendall(msgspec.json.encode({"command": command, **arguments}) + b"\n")
            with s.makefile("rb") as file:
                line = file.readline(MAX_LINE + 1)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotRunningError(f"{path}: no ntf-server is running there") from None
    except PermissionError:
        raise AdminError(f"{path}: not allowed; be the server's user, or root") from None
    except (ConnectionResetError, BrokenPipeError):
        line = b""
    except TimeoutError:
        raise AdminError(f"{path}: the server did not answer within {timeout:g} s") from None
    except OSError as e:
        raise AdminError(f"{path}: {e.strerror or e}") from e
    if not line.endswith(b"\n"):
        raise AdminError(f"{path}: the server hung up; be its user, or root")
    try:
        answer: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
        if answer.pop("ok") is not True:
            raise (RefusedError if answer.get("final") else AdminError)(str(answer["error"]))
    except (msgspec.DecodeError, KeyError):
        raise AdminError(f"{path}: who listens there does not answer as an ntf-server does") from None
    return answer


def _failure(error: str, *, final: bool = False) -> Mapping[str, Any]:
    return {"ok": False, "error": error, "final": final}


def _may_ask(connected: socket.socket) -> bool:
    """Whether the peer is this process's user, or root: a folder that others may enter must not let them in."""
    _, uid, _ = _PEER.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return uid in (_ROOT, os.geteuid())


def identity(path: Path) -> tuple[int, int]:
    """What tells a file from one that takes its place. Raises OSError."""
    found = path.lstat()
    return found.st_dev, found.st_ino


def _remove_stale(path: Path) -> None:
    """Raises OSError if somebody listens there, or if it is no socket."""
    if _is_stale(path):
        path.unlink()


def _is_stale(path: Path) -> bool:
    """Whether it is a socket that nobody listens on any more. Raises OSError if somebody does, or if it is none."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(None, "is in the way, and no socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(1)
        try:
            s.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
    raise FileExistsError(None, "another ntf-server listens there")
