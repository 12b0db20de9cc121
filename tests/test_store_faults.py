"""The store's medium in trouble, or not what it should be, under a relay as a process: nothing is lost, reads go on."""

import asyncio
import base64
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from harness import Phone, RelayProcess, environment
from old_databases import MASTER_KEY, NEWEST_OLD, OLDEST, OldQueue, OldToken, make, version

from ntf_server.config.identity_files import MASTER_KEY as MASTER_KEY_FILE
from ntf_server.supervisor import STOP_DEADLINE
from ntf_server.testing import MockApns
from smp_bridge import crypto, ntf
from smp_bridge.client import Client, ServerError
from smp_bridge.crypto import encode_private, encode_public
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Queue, Recipient

PHONES = 4
# Whoever is root may write to what is read-only, unless he has given that up.
_AS_ANYBODY = (
    sys.executable,
    "-c",
    "import ctypes, os, sys\n"
    "for capability in (1, 2, 3):\n"  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
    "    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)\n"  # PR_CAPBSET_DROP
    "os.execv(sys.argv[1], sys.argv[1:])",
)
_HOLD = (
    "import sqlite3, sys\n"
    "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    "c.execute('BEGIN IMMEDIATE')\n"
    "print('held', flush=True)\n"
    "sys.stdin.readline()\n"
)


@pytest.fixture
def relay(relay_process: RelayProcess) -> RelayProcess:
    return relay_process


class Scene:
    """Devices with a queue each, subscribed; what of their messages arrived."""

    def __init__(self, clients: Sequence[Client], apns: MockApns, smp: SmpServer, recipient: Recipient) -> None:
        """Of the clients the last one reads while others write."""
        self.clients, self.client, self.reader = clients, clients[0], clients[-1]
        self.apns, self.smp, self.recipient = apns, smp, recipient
        self.phones: list[tuple[Phone, Queue]] = []
        self.sent: list[tuple[Phone, Queue, bytes]] = []

    async def add(self, phone: Phone) -> None:
        await phone.register(self.client)
        await phone.verify(self.client)
        queue = await self.recipient.queue()
        await phone.subscribe(self.client, self.smp.address, queue)
        await self.smp.until(lambda: self.smp.subscribed(queue.notifier_id), 20)
        self.phones.append((phone, queue))

    async def send(self) -> None:
        """A message to each."""
        for phone, queue in self.phones:
            await queue.send("wake up")
            self.sent.append((phone, queue, (await queue.receive()).message_id))

    def arrived(self, phone: Phone, queue: Queue, message_id: bytes) -> bool:
        pushes = [p for p in self.apns.pushes if p.token == phone.token and "message" in p.body["notificationData"]]
        entries = [e for p in pushes for e in phone.entries(p)]
        return any(queue.open_notification(e.nonce, e.meta).message_id == message_id for e in entries)

    async def all_arrive(self, *but: Phone) -> None:
        """The newest message of each queue; a later one takes the place of those before."""
        newest = {q.notifier_id: (p, q, m) for p, q, m in self.sent if p not in but}
        async with asyncio.timeout(30):
            while not all(self.arrived(*item) for item in newest.values()):
                await asyncio.sleep(0.05)

    async def tchk(self) -> float:
        """How long it takes in a session of its own; it has to work."""
        began = asyncio.get_running_loop().time()
        assert (await self.phones[0][0].status(self.reader)).status is ntf.TokenStatus.ACTIVE
        return asyncio.get_running_loop().time() - began

    async def tnew(self, client: Client | None = None) -> tuple[bool, float]:
        """Of a device that nobody knows: whether it is registered, or told to come again later; how long that takes."""
        phone, began = Phone(self.apns), asyncio.get_running_loop().time()
        new = ntf.TNew(phone.device, phone.key.public_key(), phone.dh_key.public_key())
        try:
            answer = await (client or self.client).request(new, key=phone.key)
        except ServerError as e:
            assert str(e).startswith("STORE")
            return False, asyncio.get_running_loop().time() - began
        assert isinstance(answer, ntf.IdTkn)
        return True, asyncio.get_running_loop().time() - began

    async def refuses_writes_only(self) -> None:
        """Commands that write are told to come again within a second, those that read are answered meanwhile."""
        writes = asyncio.gather(*(self.tnew(client) for client in self.clients[:-1]))
        reads = []
        while not writes.done():
            reads.append(await self.tchk())
            await asyncio.sleep(0.02)
        assert max(reads) < 0.7
        for registered, seconds in await writes:
            assert not registered
            assert seconds < 1.5  # 0.8 s, on a machine that has something else to do


@asynccontextmanager
async def scene(relay: RelayProcess, apns: MockApns, smp: SmpServer) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        recipient = await stack.enter_async_context(await Recipient.connect(smp.address))
        clients = [await stack.enter_async_context(await Client.connect(relay.address)) for _ in range(4)]
        made = Scene(clients, apns, smp, recipient)
        for _ in range(PHONES):
            await made.add(Phone(apns))
        yield made


@asynccontextmanager
async def held_lock(database: Path) -> AsyncIterator[None]:
    """Another process holds the lock that writes need."""
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _HOLD, str(database)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    try:
        yield
    finally:
        await holder.communicate(b"\n")


async def test_another_process_holds_the_lock(relay: RelayProcess, smp_server: SmpServer, mock_apns: MockApns) -> None:
    async with scene(relay, mock_apns, smp_server) as s:
        async with held_lock(relay.database):
            await s.send()  # arrives while nothing can be written
            for _ in range(2):
                await s.refuses_writes_only()
            assert not any(s.arrived(*item) for item in s.sent), "it was pushed before it was stored"
        await s.all_arrive()
        assert (await s.tnew())[0]
    assert await relay.stop() == 0
    assert all(sent for _, sent in relay.kept().values())


async def test_a_stop_while_another_process_holds_the_lock(
    relay: RelayProcess, smp_server: SmpServer, mock_apns: MockApns
) -> None:
    """It ends in time, and what was stored before is pushed after the next start."""
    async with scene(relay, mock_apns, smp_server) as s:
        await mock_apns.stop()
        await s.send()
        async with asyncio.timeout(20):
            while len(relay.kept()) < PHONES:
                await asyncio.sleep(0.05)
        async with held_lock(relay.database):
            began = asyncio.get_running_loop().time()
            await relay.stop()
            assert asyncio.get_running_loop().time() - began < STOP_DEADLINE + 5  # the unit waits for 10 more
        await mock_apns.start()
        await relay.start()
        await s.all_arrive()


async def test_a_start_while_another_process_holds_the_lock(relay: RelayProcess) -> None:
    await relay.stop()
    async with held_lock(relay.database):
        await _refused(relay, 75, "locked")
    await relay.start()


async def test_the_file_must_not_grow(relay: RelayProcess, smp_server: SmpServer, mock_apns: MockApns) -> None:
    """A limit of file sizes, which anybody can set: writes fail, as on a full disk."""
    async with scene(relay, mock_apns, smp_server) as s:
        assert relay.process is not None
        pid = relay.process.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        size = relay.database.with_name(relay.database.name + "-wal").stat().st_size
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
        try:
            await _until_refused(s)
            await s.send()
            await s.refuses_writes_only()
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
        await s.all_arrive()
        assert (await s.tnew())[0]
    assert await relay.stop() == 0
    assert all(sent for _, sent in relay.kept().values())


async def _until_refused(s: Scene) -> None:
    for _ in range(2000):
        if not (await s.tnew())[0]:
            return
    raise AssertionError("the medium never fails: the test shows nothing")


def _mounts() -> bool:
    """Whether a file system of our own can be had here."""
    command = ("unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt")
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, check=False, capture_output=True).returncode == 0
    )


if _mounts():  # else the limit above has to do

    async def test_the_disk_is_full(tmp_path: Path, smp_server: SmpServer, mock_apns: MockApns) -> None:
        """A file system of 4 MiB that only the relay sees."""
        disk = tmp_path / "disk"
        disk.mkdir()
        there = environment(mock_apns) | {"NTF_SERVER__STORE__URL": f"sqlite:///{disk}/relay.db"}
        relay = RelayProcess(tmp_path / "relay", there, log=tmp_path / "log")
        await relay.init()
        mount = f'mount -t tmpfs -o size=4m tmpfs {disk} && exec "$@"'
        relay.prefix = ("unshare", "-rm", "sh", "-c", mount, "sh")
        await relay.start()
        try:
            async with scene(relay, mock_apns, smp_server) as s:
                assert relay.process is not None
                filler = Path(f"/proc/{relay.process.pid}/root{disk}/filler")
                _fill(filler)
                await _until_refused(s)
                await s.send()
                await s.refuses_writes_only()
                filler.unlink()
                await s.all_arrive()
                assert (await s.tnew())[0]
            assert await relay.stop() == 0
            assert relay.log is not None
            assert "full" in relay.log.read_text()
        finally:
            await relay.stop(signal.SIGKILL)

    def _fill(path: Path) -> None:
        with path.open("wb", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue


# --- a damaged record


async def test_a_damaged_record_is_that_tokens_trouble(
    relay: RelayProcess, smp_server: SmpServer, mock_apns: MockApns
) -> None:
    """Everybody else is pushed to, also with those that were due beside it; the device registers anew."""
    relay.log = relay.directory.with_name("log")
    await relay.stop()
    await relay.start()
    async with scene(relay, mock_apns, smp_server) as s:
        damaged, queue = s.phones[1]
        with closing(sqlite3.connect(relay.database)) as c, c:
            query = "UPDATE tokens SET device_token = zeroblob(length(device_token)) WHERE token_id = ?"
            assert c.execute(query, (damaged.token_id,)).rowcount == 1
        for _ in range(3):
            await s.send()
            await s.all_arrive(damaged)
        with pytest.raises(ServerError):
            await damaged.status(s.client)
        assert not any(s.arrived(*item) for item in s.sent if item[0] is damaged)
        old_id = damaged.token_id
        await damaged.register(s.client)
        assert damaged.token_id != old_id
        await damaged.verify(s.client)
        await damaged.subscribe(s.client, smp_server.address, queue)
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id), 20)
        await s.send()
        await s.all_arrive()
    assert await relay.stop() == 0
    assert "set aside" in relay.log.read_text()
    assert damaged.token not in relay.log.read_text()


# --- a file that is gone, or may not be written to


@pytest.mark.parametrize("how", ["moved", "replaced by a copy"])
async def test_a_file_that_vanishes_ends_the_relay_loudly(
    relay: RelayProcess, smp_server: SmpServer, mock_apns: MockApns, how: str
) -> None:
    """Within some seconds: what is written to it is lost. Put back, it has all that was stored before."""
    relay.log = relay.directory.with_name("log")
    await relay.stop()
    await relay.start()
    async with scene(relay, mock_apns, smp_server) as s:
        await s.send()
        await s.all_arrive()
        moved = relay.database.with_name("elsewhere.db")
        relay.database.rename(moved)
        if how != "moved":
            shutil.copy(moved, relay.database)
        assert relay.process is not None
        assert await asyncio.wait_for(relay.process.wait(), 30) == 2
    relay.process = None
    [line] = [line for line in relay.log.read_text().splitlines() if line.startswith("ntf-server: ")]
    assert "moved, deleted or replaced" in line
    moved.replace(relay.database)  # where its -wal still is
    await relay.start()
    async with await Client.connect(relay.address) as client:
        for phone, _ in s.phones:
            assert (await phone.status(client)).status is ntf.TokenStatus.ACTIVE


async def _refused(relay: RelayProcess, code: int, *words: str) -> None:
    """It ends with this code, and one line on its standard error says why."""
    relay.log = relay.directory.with_name("refused")
    process = await relay.run()
    assert await asyncio.wait_for(process.wait(), 30) == code
    relay.process = None
    lines = relay.log.read_text().splitlines()
    [line] = [line for line in lines if line.startswith("ntf-server: ")]
    assert not any("Traceback" in line for line in lines)
    for word in words:
        assert word in line
    relay.log.unlink()


@pytest.mark.parametrize("what", ["file", "folder"])
async def test_a_read_only_database_is_refused(relay: RelayProcess, what: str) -> None:
    await relay.stop()
    folder = relay.directory.with_name("store")
    folder.mkdir()
    place = folder / "relay.db"
    relay.database.rename(place)
    relay.environment["NTF_SERVER__STORE__URL"] = f"sqlite:///{place}"
    place.chmod(0o444)
    folder.chmod(0o555 if what == "folder" else 0o755)
    relay.prefix = _AS_ANYBODY
    before = place.read_bytes()
    try:
        await _refused(relay, 2, str(place))
    finally:
        folder.chmod(0o755)
    assert place.read_bytes() == before
    place.chmod(0o600)
    await relay.start()  # and is taken when that is mended


async def test_a_database_in_use_is_refused_for_now(relay: RelayProcess) -> None:
    second = RelayProcess(relay.directory, relay.environment, key_hash=relay.key_hash)
    await _refused(second, 75, "uses this database")


@pytest.mark.parametrize("kind", ["newer", "foreign", "truncated"])
async def test_what_cannot_be_used_is_refused(relay: RelayProcess, kind: str) -> None:
    await relay.stop()
    if kind == "foreign":
        relay.database.unlink()
    with closing(sqlite3.connect(relay.database, isolation_level=None)) as c:
        c.execute("PRAGMA user_version = 1000" if kind == "newer" else "CREATE TABLE mine (x)")
    if kind == "truncated":
        relay.database.write_bytes(relay.database.read_bytes()[:20_000])
    before = relay.database.read_bytes()
    words = {"newer": "newer ntf-server", "foreign": "another program", "truncated": "corrupt"}
    await _refused(relay, 2, words[kind], str(relay.database))
    assert relay.database.read_bytes() == before


# --- databases of earlier releases


def _old_token(phone: Phone, queue: Queue) -> OldToken:
    """As a released relay kept this device, and its queue."""
    server_dh = X25519PrivateKey.generate()
    key = encode_private(queue.notifier_key)
    phone.secret = crypto.dh(server_dh, phone.dh_key.public_key())
    token = OldToken(
        phone.device,
        encode_public(phone.key.public_key()),
        client_dh=phone.dh_key.public_key().public_bytes_raw(),
        server_dh=server_dh.public_key().public_bytes_raw(),
        dh_secret=phone.secret,
        queues=[OldQueue(queue.notifier_id, notifier_key=key)],
    )
    phone.token_id = token.token_id
    return token


@pytest.mark.parametrize("schema", range(OLDEST, NEWEST_OLD + 1))
async def test_devices_of_an_earlier_release_are_pushed_to(
    relay: RelayProcess, smp_server: SmpServer, mock_apns: MockApns, schema: int
) -> None:
    """Nobody has to do anything: their queues are subscribed, their pushes can be opened, TNEW finds them."""
    await relay.stop()
    (relay.directory / MASTER_KEY_FILE).write_bytes(base64.urlsafe_b64encode(MASTER_KEY))
    for file in relay.directory.glob("ntf-server.db*"):
        file.unlink()
    async with await Recipient.connect(smp_server.address) as recipient:
        phones = [(Phone(mock_apns), await recipient.queue()) for _ in range(3)]
        tokens = [_old_token(phone, queue) for phone, queue in phones]
        make(relay.database, schema, tokens, servers=[smp_server.address])
        assert version(relay.database) == schema
        await relay.start()
        await smp_server.until(lambda: all(smp_server.subscribed(q.notifier_id) for _, q in phones), 20)
        async with await Client.connect(relay.address) as client:
            s = Scene([client], mock_apns, smp_server, recipient)
            s.phones = phones
            await s.send()
            await s.all_arrive()
            for (phone, _), token in zip(phones, tokens, strict=True):
                new = ntf.TNew(phone.device, phone.key.public_key(), phone.dh_key.public_key())
                answer = await client.request(new, key=phone.key)
                assert answer == ntf.IdTkn(token.token_id, X25519PublicKey.from_public_bytes(token.server_dh))
    assert version(relay.database) > NEWEST_OLD
