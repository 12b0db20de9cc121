"""Our push engine beside those of others: how many requests a second, and what CPU one takes, on the same mock.

See README.md for what is printed.
"""

import argparse
import asyncio
import os
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from control import Child, ChildError, child, run
from engine_process import PROJECT
from report import Row, say, show

from ntf_server.push.fcm.oauth import SCOPE
from ntf_server.testing.google import ServiceAccount
from ntf_server.testing.tls import throwaway_tls

# The first is what others are compared with.
APNS: Final = {
    "apns": "ntf-relay, boxes and base64 too",
    "engine": "ntf-relay, bodies ready",
    "aioapns": f"aioapns {version('aioapns')}, JSON too",
    "httpx": f"httpx {version('httpx')}, bodies ready",
}
FCM: Final = {"fcm": "ntf-relay, boxes, base64 and JSON too", "pyfcm": f"pyfcm {version('pyfcm')}, async, JSON too"}

_HANGS: Final = 1.0  # seconds without an answer
_GRACE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What an engine made of it: see `engine_process.Outcome`; the rest is of the mock, `cpu_of_mock` in seconds."""

    outcome: dict[str, Any]
    cpu_of_mock: float
    connections: int
    body: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return float(self.outcome["answered"] / self.outcome["seconds"]) if self.outcome["seconds"] else 0.0

    @property
    def cpu(self) -> float:
        """Milliseconds a request."""
        return float(self.outcome["cpu"] / max(1, self.outcome["answered"]) * 1000)

    def rows(self, name: str, ours: "Measured | None", timeout: float) -> list[Row]:
        """What is printed of it."""
        answered, silent, errors = (self.outcome[key] for key in ("answered", "silent", "errors"))
        out = [Row(f"{name}: requests a second", self.rate, "/s")]
        if ours is not None and ours.rate:
            out.append(Row("  part of ours", self.rate / ours.rate, ""))
        out.append(Row("  CPU a request", self.cpu, "ms"))
        if ours is not None and ours.cpu:
            out.append(Row("  times ours", self.cpu / ours.cpu, ""))
        out.append(Row("  errors", sum(errors.values()), "", 0))
        out += [Row(f"    {error}", count, "") for error, count in errors.items()]
        if self.outcome["stopped"]:
            out.append(Row(f"  stopped after {timeout:g} s; answered", answered, ""))
            if silent > _HANGS:
                out.append(Row("    nothing came any more for", silent, "s"))
        out.append(Row("  connections", self.connections, ""))
        out.append(Row("  bytes of a body", self.body, "B"))
        lasted = self.outcome["seconds"] + (silent if self.outcome["stopped"] else 0.0)
        out.append(Row("  CPU of the mock, of one core", self.cpu_of_mock / lasted * 100, "%"))
        return out


@dataclass(frozen=True, slots=True)
class Bench:
    """What all engines of a provider share. `latency`: of the mock, milliseconds."""

    arguments: argparse.Namespace
    mock: Child
    ca_file: Path
    account: Path

    async def measure(self, engine: str, latency: int) -> Measured:
        """One engine in a process of its own. Raises ChildError, TimeoutError."""
        a = self.arguments
        options = {
            "--port": self.mock.ready["port"],
            "--ca-file": self.ca_file,
            "--account": self.account,
            "--requests": a.requests,
            "--warm-up": min(a.requests, a.concurrency),
            "--concurrency": a.concurrency,
            "--timeout": a.timeout,
        }
        words = [str(word) for option in options.items() for word in option]
        await self.mock.call("set", latency=latency / 1000)
        # pyfcm can be told of a CA only through those.
        trust = {"SSL_CERT_FILE": str(self.ca_file), "REQUESTS_CA_BUNDLE": str(self.ca_file), "NO_PROXY": "*"}
        start = await self.mock.call("stats")
        async with child("engine_process.py", engine, *words, environment=os.environ | trust) as process:
            await self.mock.call("reset")
            before = await self.mock.call("stats")
            outcome = await asyncio.wait_for(process.call("run"), a.timeout + _GRACE)
            after = await self.mock.call("stats")
        connections = after["connections"] - start["connections"]
        body = after["received"] / max(1, after["pushes"])
        return Measured(outcome, after["cpu"] - before["cpu"], connections, body)

    async def compare(self, engines: dict[str, str], title: str) -> None:
        """All latencies."""
        a = self.arguments
        for latency in a.latency:
            rows: list[Row] = []
            ours: Measured | None = None
            for engine, name in engines.items():
                if a.engines and engine not in a.engines:
                    continue
                say(f"{name}, {latency} ms")
                try:
                    measured = await self.measure(engine, latency)
                except (ChildError, TimeoutError) as e:
                    say(f"{name}: no figures: {e or 'no answer'}")
                    rows.append(Row(f"{name}: no figures, see above", 0, "/s"))
                    continue
                rows += measured.rows(name, ours, a.timeout)
                if ours is None and engine == next(iter(engines)):
                    ours = measured
            if rows:
                show(f"{title} takes {latency} ms; {a.requests:,} requests, {a.concurrency:,} at once", rows)


async def main(arguments: argparse.Namespace) -> None:
    """One run."""
    say(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    async with AsyncExitStack() as stack:
        tls = stack.enter_context(throwaway_tls())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ntf-bench-")))
        account = folder / "account.json"
        files = ("--cert", str(tls.cert_file), "--key", str(tls.key_file), "--streams", str(arguments.streams))
        for engines, title, options in ((APNS, "APNs", files), (FCM, "FCM", (*files, "--fcm"))):
            if arguments.engines and not set(arguments.engines) & set(engines):
                continue
            mock = await stack.enter_async_context(child("engine_load.py", *options))
            if engines is FCM:
                token_url = f"https://127.0.0.1:{mock.ready['port']}/token"
                ServiceAccount(PROJECT, SCOPE).write(account, token_url)
            await Bench(arguments, mock, tls.ca_file, account).compare(engines, title)
    say(f"load average {os.getloadavg()[0]:.2f} at the end")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--requests", type=int, default=20_000, metavar="N", help="of each engine (%(default)s)")
    add("--concurrency", type=int, default=1000, metavar="N", help="requests under way (%(default)s)")
    add("--latency", type=int, nargs="*", default=[0, 50], metavar="MS", help="of the mock (0 50)")
    add("--timeout", type=float, default=20.0, metavar="S", help="for the requests of an engine (%(default)s)")
    add("--streams", type=int, default=1000, metavar="N", help="that the mock takes on a connection (%(default)s)")
    add("--engines", nargs="*", choices=[*APNS, *FCM], metavar="NAME", help="only these: %(choices)s")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main(parse()))
