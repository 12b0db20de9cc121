"""A relay at work, with what it talks to, and the places where an operator sees how it is."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness import RelayProcess, environment
from redis_servers import free_port
from watching import Iphone, Prometheus, as_production

from ntf_server.testing import MockApns
from smp_bridge.client import Client, ServerError, UnexpectedAnswerError
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient

PHONES: Final = 3
PAUSE: Final = 0.5  # seconds between messages
LOOK: Final = 0.25  # seconds between looks


@dataclass
class Site:
    """`relay` with its `apns` and its own `smp_server`; messages flow all the time."""

    directory: Path
    relay: RelayProcess
    apns: MockApns
    smp_server: SmpServer
    metrics: str  # HOST:PORT
    page: str  # the same of the live page
    prometheus: Prometheus

    # --- what an operator looks at

    async def get(self, path: str) -> str:
        """What it answers over HTTP, with the status in the first line; empty: nothing."""
        return await asyncio.to_thread(_get, f"http://{self.metrics}{path}")

    async def state(self) -> str:
        """What the live page shows of how the relay is, but for what happened before."""
        text = await asyncio.to_thread(_get, f"http://{self.page}/api/state")
        state = json.loads(text.partition("\n")[2] or "{}")
        return json.dumps([state.get(name) for name in ("troubles", "warnings", "leases")], separators=(",", ":"))

    async def command(self, *arguments: str) -> str:
        """What `ntf-server ARGUMENT...` prints, of this relay."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ntf_server", *arguments, "--path", str(self.relay.directory)),
            env=os.environ | self.relay.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        return out.decode()

    def events(self) -> list[str]:
        """Names of all that the log tells, in order; of trouble with its reason."""
        assert self.relay.log is not None
        out = []
        for line in self.relay.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                told = json.loads(line)
                out.append(f"{told.get('event', '')} {told.get('reason', '')}".strip())
        return out


def _get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return f"{answer.status}\n{answer.read().decode()}"
    except urllib.error.HTTPError as e:
        return f"{e.code}\n{e.read().decode()}"
    except OSError:
        return ""


@contextlib.asynccontextmanager
async def at_work(
    directory: Path,
    prometheus: Prometheus,
    *,
    prefix: Sequence[str] = (),
    environ: dict[str, str] | None = None,
    limits: bool = False,
) -> AsyncIterator[Site]:
    """All is set up, and messages flow. `prefix`: what runs the relay's command; `limits`: its budgets are on."""
    directory.mkdir()
    port, page = free_port(), free_port()
    async with MockApns() as apns, SmpServer() as smp_server:
        own = {
            "NTF_SERVER__METRICS__PORT": str(port),
            "NTF_SERVER__ADMIN__PORT": str(page),
            "NTF_SERVER__LOG__FORMAT": "json",
            "NTF_SERVER__SUBSCRIBER__OWN_SERVER_DOMAINS": "localhost",
            "NTF_SERVER__LIMITS__ENABLED": str(limits).lower(),
        }
        relay = RelayProcess(
            directory / "relay",
            environment(apns) | as_production(apns, directory / "apple.p8") | own | (environ or {}),
            prefix=tuple(prefix),
            log=directory / "relay.log",
        )
        site = Site(directory, relay, apns, smp_server, f"127.0.0.1:{port}", f"127.0.0.1:{page}", prometheus)
        prometheus.watch(site.metrics)
        await relay.init()
        await relay.start()
        try:
            async with (
                await Recipient.connect(smp_server.address) as recipient,
                await Client.connect(relay.address) as c,
            ):
                ids = []
                for _ in range(PHONES):
                    phone, queue = Iphone(apns), await recipient.queue()
                    await phone.register(c)
                    await phone.verify(c)
                    await phone.subscribe(c, smp_server.address, queue)
                    ids.append(queue.notifier_id)
            await smp_server.until(lambda: all(map(smp_server.subscribed, ids)), 20)
            sending = asyncio.create_task(_send(site, ids))
            try:
                yield site
            finally:
                sending.cancel()
        finally:
            await relay.stop(signal.SIGKILL)


async def _send(site: Site, notifier_ids: list[bytes]) -> None:
    while True:
        site.smp_server.notify(*notifier_ids)
        await asyncio.sleep(PAUSE)


async def registering(site: Site, pause: float) -> None:
    """New devices come, whatever becomes of them, until it is cancelled."""
    while True:
        with contextlib.suppress(ServerError, UnexpectedAnswerError, OSError, AssertionError):
            async with await Client.connect(site.relay.address) as client:
                while True:
                    with contextlib.suppress(ServerError, AssertionError):
                        await Iphone(site.apns).register(client)
                    await asyncio.sleep(pause)
