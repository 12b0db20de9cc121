"""The reference's store log, read as a whole: which of its lines count is worked out first, what they say later.

What is worked out, ids and places of lines, is in a nameless file of SQLite that ends with the process; what is secret
stays in the log, and is read a page at a time.
"""

import asyncio
import hashlib
import os
import sqlite3
import time
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final, Self, TypeVar

from ntf_server.store.contract import StoreError
from ntf_server.store.portable import Moved, MovedNotification, MovedQueue, Servers, Slice, fitting
from ntf_server.store.reference.log_lines import (
    MAX_LINE,
    CreateQueue,
    CreateToken,
    DeleteQueue,
    DeleteToken,
    LastNotification,
    Line,
    SetPeriod,
    SetQueueStatus,
    SetTime,
    SetTokenStatus,
    UpdateToken,
    parse_line,
)
from ntf_server.store.reference.rows import (
    QUEUE_TWICE,
    LeftOut,
    ReferenceQueue,
    ReferenceToken,
    UnreadableError,
    moved_notification,
    moved_queue,
    moved_server,
    moved_token,
)
from ntf_server.store.statistics import Counts
from smp_bridge.address import ServerAddress

L = TypeVar("L", CreateToken, UpdateToken, CreateQueue, LastNotification)

# How much of how much was looked at, in bytes.
Looked = Callable[[int, int], None]

CUT_OFF: Final = "lines: the last one is cut off"
TOO_LONG: Final = "lines: longer than any that the reference writes"
BAD_LINE: Final = "lines: cannot be read"
NO_OWNER: Final = "subscriptions: there is no such registration"
_FILE: Final = 1 << 44  # more than a file has bytes: a place is of the file with that number
_SERVERS: Final = 500  # at once
_TELL: Final = 5000  # lines between two looks at how far it is
_SIZE: Final = 16  # bytes of a keyed hash
_SCHEMA: Final = """
    CREATE TABLE tokens (n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, place INTEGER NOT NULL, changed INTEGER,
        status TEXT NOT NULL, period INTEGER NOT NULL, active INTEGER, device BLOB NOT NULL, who BLOB NOT NULL,
        verify_key BLOB NOT NULL, twice INTEGER NOT NULL DEFAULT 0);
    CREATE INDEX tokens_device ON tokens (device);
    CREATE TABLE servers (n INTEGER PRIMARY KEY, identity BLOB NOT NULL UNIQUE, address TEXT NOT NULL);
    CREATE TABLE queues (n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, token BLOB NOT NULL, server INTEGER NOT NULL,
        place INTEGER NOT NULL, status TEXT NOT NULL, queue BLOB NOT NULL, twice INTEGER NOT NULL DEFAULT 0);
    CREATE INDEX queues_token ON queues (token);
    CREATE INDEX queues_server ON queues (server);
    CREATE TABLE last (queue BLOB NOT NULL, token BLOB NOT NULL, place INTEGER NOT NULL, at INTEGER NOT NULL,
        PRIMARY KEY (queue, token)) WITHOUT ROWID;
    """
_TWICE: Final = (
    "UPDATE tokens SET twice = 1 WHERE n IN (SELECT n FROM (SELECT n, row_number() OVER"
    " (PARTITION BY who ORDER BY status = 'ACTIVE' DESC, n DESC) AS rank FROM tokens) WHERE rank > 1)",
    "UPDATE queues SET twice = 1 WHERE n IN (SELECT n FROM (SELECT n, row_number() OVER"
    " (PARTITION BY queue ORDER BY status = 'ACTIVE' DESC, n DESC) AS rank FROM queues"
    " WHERE token IN (SELECT id FROM tokens)) WHERE rank > 1)",
)


class _Index:
    """Which lines count. Kept: ids, keyed hashes, and places in the files."""

    def __init__(self) -> None:
        self.db: Final = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self.db.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_SCHEMA} BEGIN")
        self._key: Final = os.urandom(32)
        self._apply: Final[Mapping[type, Callable[..., None]]] = {
            CreateToken: self._create_token,
            SetTokenStatus: self._status,
            UpdateToken: self._update,
            SetPeriod: self._period,
            SetTime: self._time,
            DeleteToken: self._delete_token,
            CreateQueue: self._create_queue,
            SetQueueStatus: self._queue_status,
            DeleteQueue: self._delete_queue,
            LastNotification: self._last,
        }

    def add(self, line: Line, place: int) -> None:
        """A line."""
        apply = self._apply.get(type(line))
        if apply is not None:
            apply(line, place)

    def end(self) -> None:
        """All lines are there."""
        for query in _TWICE:
            self.db.execute(query)

    def hash(self, *parts: bytes) -> bytes:
        """What stands for what is secret."""
        h = hashlib.blake2b(key=self._key, digest_size=_SIZE)
        for part in parts:
            h.update(len(part).to_bytes(4) + part)
        return h.digest()

    def queue(self, server: ServerAddress, notifier_id: bytes) -> bytes:
        """By what a queue is found, however its server is spelled."""
        return self.hash(server.identity, notifier_id)

    def _device(self, provider: str, device_token: bytes) -> bytes:
        return self.hash(provider.encode("utf-8", "surrogateescape"), device_token.lower())

    def _create_token(self, t: CreateToken, place: int) -> None:
        device = self._device(t.provider, t.device_token)
        self.db.execute(
            "INSERT INTO tokens (id, place, status, period, active, device, who, verify_key)"
            " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (id) DO UPDATE SET place = ?2, changed = NULL,"
            " status = ?3, period = ?4, active = ?5, device = ?6, who = ?7, verify_key = ?8",
            (
                t.token_id,
                place,
                _text(t.status),
                t.period,
                t.active_at,
                device,
                self.hash(device, t.verify_key),
                t.verify_key,
            ),
        )

    def _status(self, t: SetTokenStatus, _place: int) -> None:
        row = self.db.execute(
            "UPDATE tokens SET status = ? WHERE id = ? RETURNING device", (_text(t.status), t.token_id)
        ).fetchone()
        if row is not None and t.status == "ACTIVE":
            others = self.db.execute("SELECT id FROM tokens WHERE device = ? AND id <> ?", (row[0], t.token_id))
            for (other,) in others.fetchall():
                self._delete(other)

    def _update(self, t: UpdateToken, place: int) -> None:
        row = self.db.execute("SELECT verify_key FROM tokens WHERE id = ?", (t.token_id,)).fetchone()
        if row is not None:
            device = self._device(t.provider, t.device_token)
            self.db.execute(
                "UPDATE tokens SET changed = ?, status = 'REGISTERED', device = ?, who = ? WHERE id = ?",
                (place, device, self.hash(device, row[0]), t.token_id),
            )

    def _period(self, t: SetPeriod, _place: int) -> None:
        self.db.execute("UPDATE tokens SET period = ? WHERE id = ?", (t.period, t.token_id))

    def _time(self, t: SetTime, _place: int) -> None:
        self.db.execute("UPDATE tokens SET active = ? WHERE id = ?", (t.at, t.token_id))

    def _delete_token(self, t: DeleteToken, _place: int) -> None:
        self._delete(t.token_id)

    def _delete(self, token_id: bytes) -> None:
        self.db.execute("DELETE FROM queues WHERE token = ?", (token_id,))
        self.db.execute("DELETE FROM tokens WHERE id = ?", (token_id,))

    def _create_queue(self, q: CreateQueue, place: int) -> None:
        identity, text = q.server.identity, str(q.server)
        self.db.execute("INSERT OR IGNORE INTO servers (identity, address) VALUES (?, ?)", (identity, text))
        self.db.execute(
            "INSERT INTO queues (id, token, server, place, status, queue) VALUES (?1, ?2,"
            " (SELECT n FROM servers WHERE identity = ?3), ?4, ?5, ?6) ON CONFLICT (id) DO UPDATE SET token = ?2,"
            " server = excluded.server, place = ?4, status = ?5, queue = ?6",
            (
                q.subscription_id,
                q.token_id,
                identity,
                place,
                _text(q.status),
                self.queue(q.server, q.notifier_id),
            ),
        )

    def _queue_status(self, q: SetQueueStatus, _place: int) -> None:
        self.db.execute("UPDATE queues SET status = ? WHERE id = ?", (_text(q.status), q.subscription_id))

    def _delete_queue(self, q: DeleteQueue, _place: int) -> None:
        self.db.execute("DELETE FROM queues WHERE id = ?", (q.subscription_id,))

    def _last(self, n: LastNotification, place: int) -> None:
        self.db.execute(
            "INSERT INTO last (queue, token, place, at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (queue, token)"
            " DO UPDATE SET place = ?3, at = ?4 WHERE at <= ?4",
            (self.queue(n.server, n.notifier_id), n.token_id, place, n.at),
        )


def _text(status: str) -> str:
    return status.encode("utf-8", "replace").decode()


class StoreLogSource:
    """Implements `portable.Source`."""

    def __init__(self, paths: Sequence[Path], files: Sequence[BinaryIO], skip: Collection[bytes]) -> None:
        self.name: Final = ", ".join(map(str, paths))
        self.identity = ""
        self.ahead = int(time.time())
        self.left_out: Final = LeftOut()
        self._paths: Final = tuple(paths)
        self._files: Final = tuple(files)
        self._skip: Final = frozenset(skip)
        self._index: Final = _Index()
        self._lines: Tally[str] = Tally()

    @classmethod
    async def open(
        cls, paths: Sequence[Path], skip: Collection[bytes] = (), looked: Looked = lambda _done, _total: None
    ) -> Self:
        """`skip`: ids of registrations. Raises StoreError."""
        with ExitStack() as stack:
            files = []
            for path in paths:
                if path.with_name(path.name + ".start").exists():
                    raise StoreError(
                        f"{path}.start: is there, so the reference was stopped while it wrote {path.name} anew:"
                        " give that file instead, it is the whole one"
                    )
                try:
                    files.append(stack.enter_context(path.open("rb")))
                except OSError as e:
                    raise StoreError(f"{path}: {e.strerror}; give the reference's ntf-server-store.log") from e
            self = cls(paths, files, skip)
            stack.callback(self._index.db.close)
            try:
                await asyncio.to_thread(self._look, looked)
            except sqlite3.Error as e:
                raise StoreError(
                    f"{self.name}: what counts of it does not fit into the folder of temporary files ({e}); name"
                    " another one in SQLITE_TMPDIR"
                ) from e
            stack.pop_all()
        return self

    async def close(self) -> None:
        """Let go of it."""
        for file in self._files:
            file.close()
        self._index.db.close()

    def _look(self, looked: Looked) -> None:
        """Each line once."""
        digest = hashlib.blake2b(repr(sorted(self._skip)).encode(), digest_size=8)
        total = sum(os.fstat(file.fileno()).st_size for file in self._files)
        before = 0
        for number, (path, file) in enumerate(zip(self._paths, self._files, strict=True)):
            good = count = at = 0
            while line := file.readline(MAX_LINE):
                digest.update(line)
                good += self._look_at(line, number * _FILE + at, f"{path.name}:{count + 1}")
                at, count = at + len(line), count + 1
                while line and not line.endswith(b"\n"):  # what is left of it
                    line = file.readline(MAX_LINE)
                    digest.update(line)
                    at += len(line)
                if count % _TELL == 0:
                    looked(before + at, total)
            if count and not good:
                raise StoreError(f"{path}: holds no line of the reference's store log; give ntf-server-store.log")
            before += at
        looked(total, total)
        self._index.end()
        self.identity = digest.hexdigest()

    def _look_at(self, line: bytes, place: int, where: str) -> bool:
        """Whether it can be read."""
        reason = BAD_LINE
        if not line.endswith(b"\n"):
            reason = TOO_LONG if len(line) == MAX_LINE else CUT_OFF
        elif stripped := line.rstrip(b"\r\n"):
            try:
                self._index.add(parse_line(stripped), place)
            except UnreadableError:
                pass
            else:
                return True
        else:
            return False  # it says nothing
        self.left_out.add(self._lines, reason, where)
        return False

    # --- see `portable.Source`

    async def check_idle(self) -> None:
        """See `Source`: it cannot be seen who writes a file."""

    async def tokens(self) -> int:
        """See `Source`."""
        [[count]] = self._index.db.execute("SELECT count(*) FROM tokens")
        return int(count)

    async def statistics(self) -> Mapping[str, Counts]:
        """See `Source`: the reference counts elsewhere."""
        return {}

    async def servers(self) -> AsyncIterator[Servers]:
        """See `Source`."""
        left_out = Tally(self._lines)
        orphans = self._index.db.execute("SELECT id FROM queues WHERE token NOT IN (SELECT id FROM tokens)")
        for (subscription_id,) in orphans:
            self.left_out.add(left_out, NO_OWNER, subscription_id)
        yield Servers([], left_out)
        after = 0
        while rows := self._index.db.execute(
            "SELECT n, address, EXISTS (SELECT 1 FROM queues q WHERE q.server = s.n AND q.status = 'ACTIVE')"
            " FROM servers s WHERE n > ? AND EXISTS (SELECT 1 FROM queues q WHERE q.server = s.n) ORDER BY n LIMIT ?",
            (after, _SERVERS),
        ).fetchall():
            moved = [
                moved_server(
                    ServerAddress.from_text(text),
                    self.ahead,
                    active=bool(active),
                    service=None,
                    counted=0,
                    counted_hash=bytes(16),
                )
                for _, text, active in rows
            ]
            yield Servers(moved, Tally())
            after = rows[-1][0]

    async def read(self, after: bytes, limit: int) -> Slice:
        """See `Source`. A cursor is the number of the last registration."""
        return await asyncio.to_thread(self._slice, int.from_bytes(after), limit)

    def _slice(self, after: int, limit: int) -> Slice:
        found = self._index.db.execute(
            "SELECT n, id, place, changed, status, period, active, twice,"
            " (SELECT count(*) FROM queues q WHERE q.token = t.id) FROM tokens t WHERE n > ? ORDER BY n LIMIT ?",
            (after, limit),
        ).fetchall()
        rows = found[: fitting([row[-1] for row in found])]
        left_out: Tally[str] = Tally()
        moved = [one for row in rows if (one := self._registration(row, left_out)) is not None]
        more = len(found) == limit or len(rows) < len(found)
        return Slice(moved, rows[-1][0].to_bytes(8) if more else None, left_out)

    def _registration(self, row: Sequence[Any], left_out: Tally[str]) -> Moved | None:
        token_id, twice, count = row[1], *row[-2:]
        query = "SELECT id FROM queues WHERE token = ? LIMIT 1"
        token = self.left_out.registration(
            left_out,
            token_id,
            count,
            lambda: self._index.db.execute(query, (token_id,)).fetchone()[0],
            lambda: moved_token(self._token(row), self.ahead),
            skipped=token_id in self._skip,
            twice=bool(twice),
        )
        return None if token is None else Moved(token, tuple(self._owned(token_id, token.active_at, left_out)))

    def _token(self, row: Sequence[Any]) -> ReferenceToken:
        _, _, place, changed, status, period, active, _, count = row
        made, device = self._line(place, CreateToken), None if changed is None else self._line(changed, UpdateToken)
        now = made if device is None else device
        return ReferenceToken(
            made.token_id,
            now.provider,
            now.device_token,
            status,
            made.verify_key,
            made.dh_private,
            made.dh_secret,
            now.code,
            period,
            None,
            active,
            count,
        )

    def _line(self, place: int, kind: type[L]) -> L:
        """What was there when it was looked at."""
        number, at = divmod(place, _FILE)
        file = self._files[number]
        file.seek(at)
        line = parse_line(file.readline(MAX_LINE).rstrip(b"\r\n"))
        if not isinstance(line, kind):
            raise UnreadableError("the log was changed meanwhile")
        return line

    def _owned(self, token_id: bytes, created_at: int, left_out: Tally[str]) -> list[MovedQueue]:
        rows = self._index.db.execute(
            "SELECT q.n, q.id, q.place, q.status, q.twice, l.place, l.at FROM queues q"
            " LEFT JOIN last l ON l.queue = q.queue AND l.token = q.token WHERE q.token = ? ORDER BY q.n",
            (token_id,),
        ).fetchall()
        kept = sorted((row for row in rows if row[5] is not None), key=lambda row: (row[6], row[5]))
        order = defaultdict(int, {row[0]: number for number, row in enumerate(kept, 1)})
        out = []
        for n, subscription_id, place, status, twice, last, _ in rows:
            try:
                if twice:
                    raise UnreadableError(QUEUE_TWICE)
                made = self._line(place, CreateQueue)
                notification = self._notification(last, order[n], subscription_id, left_out)
                queue = ReferenceQueue(subscription_id, made.notifier_id, made.notifier_key, status, False)
                out.append(moved_queue(queue, made.server, n, created_at, notification))
            except UnreadableError as e:
                self.left_out.add(left_out, f"subscriptions: {e}", subscription_id)
        return out

    def _notification(
        self, place: int | None, number: int, subscription_id: bytes, left_out: Tally[str]
    ) -> MovedNotification | None:
        """A subscription is not lost with it."""
        if place is None:
            return None
        try:
            last = self._line(place, LastNotification)
            return moved_notification(number, last.at, last.nonce, last.meta)
        except UnreadableError as e:
            self.left_out.add(left_out, f"notifications: {e}", subscription_id)
            return None
