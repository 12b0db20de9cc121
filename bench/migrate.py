"""A database of an earlier schema is made, then migrated by the store in a process of its own: time, and peak memory.

What is written: tokens of APNs (one in a hundred in upper case, with a twin), their subscriptions, of which a service
has half, a notification for one in five; one server in ten is another spelling of the one before it. The store is
opened as the relay opens it, and its log is shown as it comes.
"""

import argparse
import hashlib
import hmac
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ntf_server.store.sealing import CLIENT_DH, CODE, DEVICE_TOKEN, NOTIFIER_KEY, SECRET, SERVER_DH, MasterKey, Sealer
from ntf_server.store.sqlite.keys import load_key
from ntf_server.store.sqlite.migrations import migrate
from ntf_server.store.sqlite.schema import migrations
from smp_bridge.address import ServerAddress

NEWEST_OLD: Final = 4  # the newest schema that is not made by this code
MASTER: Final = MasterKey(b"a master key of thirty-two bytes")
_TWIN_EACH: Final = 100  # tokens
_SPELLING_EACH: Final = 10  # servers
_NOTIFICATION_EACH: Final = 5  # subscriptions
_KEY: Final = bytes.fromhex("302e020100300506032b657004220420")  # what precedes the 32 bytes of a key (RFC 8410)
_OPEN: Final = """
import asyncio, json, logging, re, sys, time
from pathlib import Path
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.engine import SqliteStore
logging.basicConfig(level="INFO", format="    %(message)s")
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
async def main():
    before, began = peak(), time.monotonic()
    store = await SqliteStore.open(Path(sys.argv[1]), master_key=MasterKey(b"a master key of thirty-two bytes"))
    took = time.monotonic() - began
    count = await store.subscription_count()
    await store.close()
    print(json.dumps({"seconds": took, "before": before, "peak": peak(), "subscriptions": count}))
asyncio.run(main())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subscriptions", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--servers", type=int, default=200)
    parser.add_argument("--schema", type=int, default=NEWEST_OLD, choices=range(1, NEWEST_OLD + 1))
    options = parser.parse_args()
    content = Content(options.schema, options.subscriptions, options.tokens, options.servers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "relay.db"
        began = time.monotonic()
        make(path, content)
        print(
            f"schema {content.schema}: {options.subscriptions:,} subscriptions of {options.tokens:,} tokens on", end=" "
        )
        print(f"{options.servers} servers, {_size(path)}, made in {time.monotonic() - began:.0f} s", flush=True)
        first = _open(path)
        print(f"migrated: {first['seconds']:.1f} s, peak {first['peak']:.0f} MiB ({first['before']:.0f} before)")
        print(f"    {_size(path)}, {first['subscriptions']:,.0f} subscriptions")
        copy = next(path.parent.glob("relay.db.schema*"))
        print(f"    the copy that was kept: {copy.name}, {_size(copy)}")
        again = _open(path)
        print(f"opened again: {again['seconds']:.1f} s, peak {again['peak']:.0f} MiB")


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 2**20:.0f} MiB"


def _open(path: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", _OPEN, str(path)], stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


# --- a database as an earlier release left it


@dataclass(frozen=True)
class Content:
    """How much of each."""

    schema: int
    subscriptions: int
    tokens: int
    servers: int


def make(path: Path, content: Content) -> None:
    """In one transaction, without waiting for the disk."""
    path.touch(mode=0o600)
    with closing(sqlite3.connect(path, isolation_level=None)) as c:
        c.execute("PRAGMA journal_mode = WAL")
        for pragma in ("synchronous = OFF", "cache_size = -262144", "wal_autocheckpoint = 0"):
            c.execute(f"PRAGMA {pragma}")
        migrate(c, migrations(MASTER)[: content.schema], None)
        sealed = content.schema >= 2
        writer = Writer(Sealer(load_key(c, MASTER)) if sealed else None, content)
        c.execute("BEGIN")
        addresses = list(_servers(content.servers))
        generation = "generation" if content.schema >= 3 else "session"
        query = f"INSERT INTO servers (ref, address, {generation}) VALUES (?, ?, 1)"
        c.executemany(query, [(ref, address.encode()) for ref, address in enumerate(addresses, 1)])
        lookup = ", registered_at, device_lookup" if sealed else ""
        c.executemany(
            "INSERT INTO tokens (token_id, provider, device_token, verify_key, client_dh, server_dh, secret, code,"
            f" status, created_at{lookup}) VALUES (?, 'AP', ?, ?, ?, ?, ?, ?, 'ACTIVE', ?{', ?, ?' * sealed})",
            writer.tokens(),
        )
        association = "association" if content.schema >= 3 else "session"
        c.executemany(
            "INSERT INTO subscriptions (ref, subscription_id, token, server, notifier_id, notifier_key, status,"
            f" {association}, created_at) VALUES (?, ?, ?, ?, ?, ?, 'ACTIVE', ?, ?)",
            writer.subscriptions(),
        )
        c.execute(
            "INSERT INTO notifications (subscription, token, seq, received_at, nonce, meta, sent)"
            " SELECT ref, token, ref, ?, randomblob(24), randomblob(144), ref % 2 FROM subscriptions"
            f" WHERE ref % {_NOTIFICATION_EACH} = 0",
            (int(time.time()),),
        )
        c.execute("COMMIT")
        c.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _servers(count: int) -> Iterator[ServerAddress]:
    address = ServerAddress("smp", ("smp.example.org",), "", os.urandom(32))
    for number in range(count):
        if number % _SPELLING_EACH == 1:
            address = ServerAddress("smp", (address.hosts[0].upper(),), "5223", address.key_hash)
        else:
            address = ServerAddress("smp", (f"smp{number}.example.org",), "", os.urandom(32))
        yield address


class Writer:
    """Rows of its tables; without a sealer in the clear."""

    def __init__(self, sealer: Sealer | None, content: Content) -> None:
        self._sealer = sealer
        self._content = content
        self._now = int(time.time())

    def _seal(self, value: bytes, context: bytes) -> bytes:
        return self._sealer.seal(value, context) if self._sealer else value

    def tokens(self) -> Iterator[tuple[object, ...]]:
        for number in range(self._content.tokens):
            twin = number % _TWIN_EACH == 1  # of the one before it
            device = hashlib.sha256(b"bench %d" % (number - twin)).hexdigest().encode()
            device = device.upper() if twin else device
            token_id = os.urandom(24)
            row = (
                token_id,
                self._seal(device, DEVICE_TOKEN + token_id),
                b"verify key %d" % (number - twin),
                *(self._seal(os.urandom(32), where + token_id) for where in (CLIENT_DH, SERVER_DH, SECRET, CODE)),
                self._now - number,
            )
            if self._sealer:
                lookup = hmac.digest(self._sealer._lookup_key, b"\2AP" + device, "sha256")
                row = (*row, self._now - number, lookup)
            yield row

    def subscriptions(self) -> Iterator[tuple[object, ...]]:
        content = self._content
        for number in range(1, content.subscriptions + 1):
            subscription_id = os.urandom(24)
            key = self._seal(_KEY + os.urandom(64), NOTIFIER_KEY + subscription_id)
            at = number % content.tokens + 1, number % content.servers + 1
            associated = number // content.servers % 2
            yield number, subscription_id, *at, os.urandom(24), key, associated, self._now


if __name__ == "__main__":
    main()
