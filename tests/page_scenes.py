"""A relay with its live page, under load, and what may happen to it: for tests in a browser.

`scripts/page-pictures` has this file take the pictures of the documentation.
"""

import asyncio
import contextlib
import itertools
import logging
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from browser import Browser
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from harness import Phone
from redis_servers import free_port

from ntf_server.app import Relay
from ntf_server.config import files as config
from ntf_server.config.files import Config
from ntf_server.config.identity_files import create_identity, write_file
from ntf_server.config.source import CONFIG_FILE
from ntf_server.push.jose import generate_key, key_pem
from ntf_server.store.sealing import generate_key_text
from ntf_server.testing import MockApns, MockWebPush
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client
from smp_bridge.ntf import DeviceToken, Provider
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Queue, Recipient

PHONES: Final = 24
VAPID: Final = generate_key()
POINT: Final = PublicFormat.UncompressedPoint
IMAGES: Final = Path(__file__).parents[1] / "docs/images"


@dataclass
class Scene:
    """A relay in this process, devices that are subscribed, and messages to them: `rate` a second."""

    config: Config
    relay: Relay
    apns: MockApns
    browsers: MockWebPush
    smp: SmpServer
    queues: list[Queue] = field(default_factory=list)
    rate: float = 40.0

    @property
    def url(self) -> str:
        assert self.config.page is not None
        return self.config.page.url

    async def send(self) -> None:
        """Messages, until cancelled; every few seconds there are more."""
        loop, sent = asyncio.get_running_loop(), itertools.cycle(self.queues)
        began = loop.time()
        while True:
            more = 1 + 0.5 * ((loop.time() - began) % 7 < 2)
            for _ in range(max(1, round(self.rate * more / 10))):
                self.smp.notify(next(sent).notifier_id)
            await asyncio.sleep(0.1)

    async def register_browser(self, client: Client) -> None:
        """One that is pushed its code, and that is all."""
        phone = Phone(self.apns)
        new = ntf.TNew(self._web_push(), phone.key.public_key(), phone.dh_key.public_key())
        await client.request(new, key=phone.key)

    def _web_push(self) -> DeviceToken:
        subscription = self.browsers.subscribe(VAPID.public_key().public_bytes(Encoding.X962, POINT))
        place = "localhost", str(self.browsers.port), subscription.path
        fields = (*(text.encode() for text in place), subscription.auth, subscription.p256dh)
        return DeviceToken(Provider.WEB_PUSH, b"".join(bytes([len(f)]) + f for f in fields))

    async def client(self) -> Client:
        key_hash = self.config.credentials.key_hash
        return await Client.connect(ServerAddress("ntf", ("127.0.0.1",), str(self.relay.port), key_hash))

    async def fill_store(self) -> None:
        """There is no room in it any more."""
        await self._pages(1)

    async def empty_store(self) -> None:
        await self._pages(1_000_000)

    async def _pages(self, most: int) -> None:
        assert self.relay._parts is not None
        store: Any = self.relay._parts.store
        await store._database.run(lambda c: c.execute(f"PRAGMA max_page_count = {most}").fetchone())


@asynccontextmanager
async def scene(folder: Path, *, phones: int = PHONES, **settings: Any) -> AsyncIterator[Scene]:
    """One that runs; nothing is sent yet."""
    create_identity(folder, "ED25519", "ntf.example.org")
    write_file(folder / "master.key", generate_key_text().encode())
    (folder / CONFIG_FILE).touch()
    write_file(folder / "vapid.key", key_pem(VAPID))
    async with MockApns() as apns, MockWebPush() as browsers, SmpServer(sni="web") as smp:
        defaults = {
            "transport__bind": "127.0.0.1",
            "transport__host": "ntf.example.org",
            "transport__port": 0,
            "apns__test__host": "localhost",
            "apns__test__port": apns.port,
            "apns__test__ca_file": apns.ca_file,
            "web_push__key_file": "vapid.key",
            "web_push__contact": "mailto:operator@example.org",
            "web_push__ca_file": browsers.ca_file,
            "web_push__allow_hosts": "localhost",
            "subscriber__allow_private_hosts": "true",
            "subscriber__own_server_domains": smp.address.hosts[0],
            "limits__commands_per_session": "60 + 40/s",
            "admin__port": free_port(),
        }
        environ = {f"NTF_SERVER__{k.upper()}": str(v) for k, v in {**defaults, **settings}.items()}
        loaded = config.load(folder, environ)
        async with await Recipient.connect(smp.address) as recipient:
            queues = [await recipient.queue() for _ in range(phones)]
            async with Relay(loaded) as relay:  # it gets what it has
                await _register(Scene(loaded, relay, apns, browsers, smp, queues))
            async with Relay(loaded) as relay:
                made = Scene(loaded, relay, apns, browsers, smp, queues)
                for queue in queues:
                    await smp.until(lambda queue=queue: smp.subscribed(queue.notifier_id))  # type: ignore[misc]
                yield made


async def _register(made: Scene) -> None:
    async with await made.client() as client:
        for queue in made.queues:
            phone = Phone(made.apns)
            await phone.register(client)
            await phone.verify(client)
            await phone.subscribe(client, made.smp.address, queue)


@asynccontextmanager
async def sending(made: Scene) -> AsyncIterator[None]:
    """With messages that come."""
    task = asyncio.create_task(made.send())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def pictures(seconds: float) -> None:
    """Those of the documentation: what the page shows after so long."""
    logging.getLogger("ntf_server").setLevel(logging.INFO)
    IMAGES.mkdir(exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        limits = {"limits__registrations_per_address": "4 + 20/s"}
        made = await stack.enter_async_context(scene(Path(folder), phones=60, **limits))
        await stack.enter_async_context(sending(made))
        browser = await stack.enter_async_context(Browser())
        made.rate = 90.0
        made.apns.latency = 0.03
        await browser.looks(1280, 900)
        await browser.open(made.url)
        for _ in range(12):
            client = await stack.enter_async_context(await made.client())
            await asyncio.gather(Phone(made.apns).register(client), made.register_browser(client))
            await asyncio.gather(*[client.request(ntf.Ping()) for _ in range(90)])  # more than the budget has at once
            await asyncio.sleep(seconds / 12)
        await browser.photograph(IMAGES / "live-page.webp")
        await browser.looks(390, 844)
        await asyncio.sleep(3)
        await browser.photograph(IMAGES / "live-page-phone.webp", whole=False)
        await browser.looks(1280, 1200, dark=True)
        await made.apns.stop()
        await asyncio.sleep(65)  # after a minute it is told
        await browser.photograph(IMAGES / "live-page-trouble.webp", whole=False)


if __name__ == "__main__":
    asyncio.run(pictures(float(sys.argv[1])))
