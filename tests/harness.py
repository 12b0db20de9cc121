"""What tests of the whole are made of: the relay as a process of its own, and a device that talks to it."""

import asyncio
import base64
import contextlib
import os
import signal
import sqlite3
import sys
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ntf_server.testing import MockApns, Push
from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client
from smp_bridge.testing.recipient import Queue


def environment(mock_apns: MockApns) -> dict[str, str]:
    """Settings of a relay that pushes to this mock as its provider AT, and is not held up by budgets."""
    return {
        "NTF_SERVER__APNS__TEST__HOST": "localhost",
        "NTF_SERVER__APNS__TEST__PORT": str(mock_apns.port),
        "NTF_SERVER__APNS__TEST__CA_FILE": str(mock_apns.ca_file),
        "NTF_SERVER__SUBSCRIBER__ALLOW_PRIVATE_HOSTS": "true",
        "NTF_SERVER__LIMITS__ENABLED": "false",
        "NTF_SERVER__TRANSPORT__BIND": "localhost",
    }


@dataclass
class RelayProcess:
    """`ntf-server start` in a process of its own, which can be killed and started again on the same port."""

    directory: Path
    environment: dict[str, str]
    port: int = 0
    key_hash: bytes = b""
    prefix: tuple[str, ...] = ()  # what runs the command
    log: Path | None = None  # takes what it says, if that is of interest
    process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> ServerAddress:
        return ServerAddress("ntf", ("localhost",), str(self.port), self.key_hash)

    @property
    def database(self) -> Path:
        return self.directory / "ntf-server.db"

    async def init(self) -> None:
        arguments = ["init", "--path", str(self.directory), "--fqdn", "localhost", "--sign-algorithm", "ED25519"]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ntf_server", *arguments, stdout=-1, stderr=-1
        )
        out, _ = await process.communicate()
        self.key_hash = ServerAddress.from_text(out.decode().strip()).key_hash

    async def run(self) -> asyncio.subprocess.Process:
        """Begin to start it."""
        with self.log.open("ab") if self.log else contextlib.nullcontext() as log:
            self.process = await asyncio.create_subprocess_exec(
                *(*self.prefix, sys.executable, "-m", "ntf_server", "start", "--path", str(self.directory)),
                env=os.environ | self.environment | {"NTF_SERVER__TRANSPORT__PORT": str(self.port)},
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        return self.process

    async def start(self) -> None:
        process = await self.run()
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
        assert line.startswith("listening on localhost:"), line
        self.port = int(line.rpartition(":")[2])

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            process.send_signal(number)
        return await asyncio.wait_for(process.wait(), 30)

    def kept(self) -> dict[bytes, tuple[bytes, bool]]:
        """While it is stopped: of each queue, by notifier id, the newest notification's nonce, and if it was sent."""
        connection = sqlite3.connect(self.database)
        try:
            rows = connection.execute(
                "SELECT s.notifier_id, n.nonce, n.sent FROM notifications n"
                " JOIN subscriptions s ON s.ref = n.subscription"
            ).fetchall()
            return {notifier_id: (nonce, bool(sent)) for notifier_id, nonce, sent in rows}
        finally:
            connection.close()


@dataclass
class Phone:
    """A device that speaks NTF by hand; pushes are taken from a mock APNs."""

    apns: MockApns
    token: str = field(default_factory=lambda: os.urandom(32).hex())
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    dh_key: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    token_id: bytes = b""
    secret: bytes = b""

    @property
    def device(self) -> ntf.DeviceToken:
        return ntf.DeviceToken(ntf.Provider.APNS_TEST, self.token.encode())

    def open(self, push: Push, name: str) -> bytes:
        data = push.body["notificationData"]
        nonce, sealed = (base64.urlsafe_b64decode(data[key]) for key in ("nonce", name))
        return crypto.unpad(crypto.unbox(self.secret, nonce, sealed))

    def entries(self, push: Push) -> list[ntf.Entry]:
        return [ntf.Entry.parse(e) for e in self.open(push, "message").split(b";")]

    async def register(self, client: Client) -> None:
        new = ntf.TNew(self.device, self.key.public_key(), self.dh_key.public_key())
        answer = await client.request(new, key=self.key)
        assert isinstance(answer, ntf.IdTkn)
        self.token_id, self.secret = answer.token_id, crypto.dh(self.dh_key, answer.dh_key)

    async def verify(self, client: Client) -> None:
        code = self.open(await self.apns.next(self.token), "verification")
        assert await client.request(ntf.TVfy(code), self.token_id, self.key) == ntf.Ok()

    async def subscribe(self, client: Client, server: ServerAddress, queue: Queue) -> bytes:
        new = ntf.SNew(self.token_id, server, queue.notifier_id, queue.notifier_key)
        answer = await client.request(new, key=self.key)
        assert isinstance(answer, ntf.IdSub)
        return answer.subscription_id

    async def status(self, client: Client) -> ntf.Tkn:
        answer = await client.request(ntf.TChk(), self.token_id, self.key)
        assert isinstance(answer, ntf.Tkn)
        return answer
