"""A real PostgreSQL for tests, on loopback: what is installed, or what scripts/test --all unpacked.

It refuses to run as root, so it is nobody's then.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
import pytest
from debian import unpacked
from redis_servers import free_port

USER, PASSWORD, DATABASE = "ntf", "pass/word@sea", "postgres"
QUOTED = "pass%2Fword%40sea"


def binaries() -> Path | None:
    """The folder of initdb and postgres."""
    roots = [root / "usr/lib/postgresql" for root in (Path("/"), unpacked()) if root]
    found = [p for root in roots for p in sorted(root.glob("*/bin"), reverse=True) if (p / "initdb").exists()]
    on_path = shutil.which("postgres")
    if on_path and (Path(on_path).resolve().parent / "initdb").exists():
        found.insert(0, Path(on_path).resolve().parent)
    return found[0] if found else None


# Everywhere where there is one; else scripts/test --all gets Debian's.
WANTED: Any = [] if binaries() else pytest.mark.long


class Postgres:
    """`url`: with the password."""

    def __init__(self) -> None:
        found = binaries()
        assert found is not None, "there is no PostgreSQL: install it, or run scripts/test --all where apt-get is"
        self._bin = found
        self._dir = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._options: dict[str, Any] = {"env": os.environ | {"LC_ALL": "C"}}
        folder = unpacked()
        if folder and found.is_relative_to(folder):
            self._options["env"]["LD_LIBRARY_PATH"] = ":".join(map(str, (folder / "usr/lib").glob("*-linux-gnu")))
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self._dir, nobody.pw_uid, nobody.pw_gid)
            self._options |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self.port = free_port()
        self.url = f"postgresql://{USER}:{QUOTED}@127.0.0.1:{self.port}/{DATABASE}"

    def __enter__(self) -> Self:
        secret = self._dir / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        data = str(self._dir / "data")
        made = [str(self._bin / "initdb"), "-D", data, "-U", USER, "-A", "scram-sha-256", f"--pwfile={secret}"]
        subprocess.run(
            [*made, "--encoding=UTF8", "--locale=C", "--no-sync"],
            check=True, stdin=-3, stdout=-3, cwd="/", **self._options,
        )  # fmt: skip
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "timezone": "GMT",
            "log_timezone": "GMT",
            "shared_buffers": "8MB",
            "log_min_messages": "fatal",
        }
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            [str(self._bin / "postgres"), "-D", data, "-p", str(self.port), *words],
            stdin=-3, stdout=-3, stderr=-3, cwd="/", **self._options,
        )  # fmt: skip
        end = time.monotonic() + 60
        while True:
            try:
                self.connect().close()
                return self
            except psycopg.OperationalError:
                assert self._process.poll() is None and time.monotonic() < end
                time.sleep(0.05)

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _b: TracebackType | None) -> None:
        self._process.terminate()  # smart: but nobody is connected
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.send_signal(2)
            self._process.wait(20)
        shutil.rmtree(self._dir)

    def connect(self) -> "psycopg.Connection[Any]":
        """As an operator with psql."""
        return psycopg.connect(self.url, autocommit=True, application_name="psql")
