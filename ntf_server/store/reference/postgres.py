"""The reference's PostgreSQL database, read in one transaction: its schemas of 6.4 to 7.0.

A page of registrations at a time, in the order of their ids, by the indexes that it has: memory holds a page, and the
SMP servers. psycopg is imported here alone.
"""

import hashlib
import re
import time
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Final, Self, cast

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import namedtuple_row

from ntf_server.store.contract import StoreError, StoreUnavailableError
from ntf_server.store.portable import Moved, MovedNotification, MovedQueue, Servers, Slice, batches, fitting
from ntf_server.store.reference.rows import (
    QUEUE_TWICE,
    LeftOut,
    ReferenceQueue,
    ReferenceToken,
    Service,
    UnreadableError,
    moved_notification,
    moved_queue,
    moved_server,
    moved_token,
    server_address,
    service,
)
from ntf_server.store.statistics import Counts
from smp_bridge.address import ServerAddress
from smp_bridge.service import ids_hash, xor

FIRST: Final = "20250417_initial"
ASSOCIATED: Final = "20250517_service_cert"  # subscriptions know of a service
CERTIFICATES: Final = "20251219_service_cert_per_server"  # and it has a certificate for each server
KNOWN: Final = (FIRST, ASSOCIATED, "20250830_queue_ids_hash", CERTIFICATES)

_TIMEOUT: Final = 10  # seconds, to connect
_SERVERS: Final = 500  # at once
_SUMMED: Final = 5000  # rows of the cursor that all associated subscriptions go through
_WANTED: Final = ("NEW", "PENDING", "ACTIVE", "INACTIVE")  # statuses that the reference's service counts
_SERVER = ("smp_server_id", "smp_host", "smp_port", "smp_keyhash")

Row = Any  # as psycopg makes it: with a column's name


class _Server:
    """An SMP server's row."""

    __slots__ = ("active", "address", "counted", "counted_hash", "service")

    def __init__(self, address: ServerAddress, active: bool, service: Service | None) -> None:
        self.address = address
        self.active = active
        self.service = service
        self.counted = 0
        self.counted_hash = bytes(16)


class PostgresSource:
    """Implements `portable.Source`."""

    def __init__(self, connection: "psycopg.AsyncConnection[Any]", schema: str, skip: Collection[bytes]) -> None:
        info = connection.info
        host = f"[{info.host}]" if ":" in info.host else info.host
        self.name: Final = f"postgresql://{info.user}@{host}:{info.port}/{info.dbname}, schema {schema}"
        self.identity = ""
        self.ahead = int(time.time())
        self.left_out: Final = LeftOut()
        self._connection = connection
        self._schema = schema
        self._skip = frozenset(skip)
        self._migrations: tuple[str, ...] = ()
        self._servers: dict[int, _Server] = {}
        self._first: dict[bytes, int] = {}  # of each server, by its identity: the row that stands for it
        self._unreadable: Tally[str] = Tally()
        self._twice: frozenset[bytes] = frozenset()
        self._queues_twice: frozenset[bytes] = frozenset()

    @classmethod
    async def open(cls, url: str, schema: str, skip: Collection[bytes] = ()) -> Self:
        """`url`: what libpq takes; `skip`: ids of registrations. Raises StoreError, StoreUnavailableError."""
        connection = await _connect(url)
        try:
            self = cls(connection, schema, skip)
            await self._look()
        except BaseException:
            await connection.close()
            raise
        return self

    async def close(self) -> None:
        """Let go of it."""
        await self._connection.close()

    # --- what it is

    async def _look(self) -> None:
        await self._all("SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0")
        await self._all("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        [found] = await self._all(
            "SELECT to_regnamespace(quote_ident(%(s)s)) IS NOT NULL AS there,"
            " to_regclass(quote_ident(%(s)s) || '.migrations') IS NOT NULL AS versioned,"
            " to_regclass(quote_ident(%(s)s) || '.subscriptions') IS NOT NULL AS filled",
            {"s": self._schema},
        )
        if not found.there:
            raise StoreError(f"{self.name}: there is no such schema; give its name by --schema ([STORE_LOG] db_schema)")
        if not (found.versioned and found.filled):
            raise StoreError(f"{self.name}: is not the reference's, it has no tables migrations and subscriptions")
        rows = await self._all("SELECT name, ts::text AS ts FROM {schema}.migrations ORDER BY name")
        self._migrations = tuple(row.name for row in rows)
        if unknown := [name for name in self._migrations if name not in KNOWN]:
            raise StoreError(
                f"{self.name}: is of a version that this ntf-relay does not know, with the migration"
                f" {_shown(unknown[-1])}; nothing was imported: update ntf-relay"
            )
        if FIRST not in self._migrations:
            raise StoreError(f"{self.name}: is not the reference's: the migration {FIRST} is missing")
        facts = repr([self._schema, [(row.name, row.ts) for row in rows], sorted(self._skip)])
        self.identity = hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()
        await self._look_at_servers()
        await self._look_for_twins()

    async def _look_at_servers(self) -> None:
        """Those that are subscribed at. Two spellings of one are one: the first stands for it."""
        more = ", ntf_service_id, ntf_service_cert, ntf_service_priv_key" if self._has(CERTIFICATES) else ""
        cursor = self._cursor("servers")
        async with cursor:
            await self._execute(
                cursor,
                f"SELECT {', '.join(_SERVER)}{more}, EXISTS (SELECT 1 FROM {{schema}}.subscriptions s"
                " WHERE s.smp_server_id = p.smp_server_id AND s.status = 'ACTIVE') AS active"
                " FROM {schema}.smp_servers p WHERE EXISTS (SELECT 1 FROM {schema}.subscriptions s"
                " WHERE s.smp_server_id = p.smp_server_id) ORDER BY smp_server_id",
            )
            while rows := await self._fetch(cursor, _SERVERS):
                for row in rows:
                    self._add_server(row)
        await self._sum_up_services()

    def _add_server(self, row: Row) -> None:
        ref = int(row.smp_server_id)
        try:
            address = server_address(row.smp_host, row.smp_port, row.smp_keyhash)
        except UnreadableError as e:
            self.left_out.add(self._unreadable, f"servers: {e}", f"smp_server_id {ref}")
            return
        is_first = self._first.setdefault(address.identity, ref) == ref
        found = None
        if is_first and self._has(CERTIFICATES) and row.ntf_service_id and row.ntf_service_cert:
            try:
                found = service(row.ntf_service_id, row.ntf_service_cert, row.ntf_service_priv_key or b"")
            except UnreadableError as e:
                self.left_out.add(self._unreadable, f"certificates: {e}", str(address))
        self._servers[ref] = _Server(address, bool(row.active), found)
        if not is_first:
            first = self._servers[self._first[address.identity]]
            first.active = first.active or bool(row.active)

    async def _sum_up_services(self) -> None:
        """What each SMP server counts of our service, as the subscriptions say."""
        if not any(server.service for server in self._servers.values()):
            return
        async with self._cursor("associated") as cursor:
            await self._execute(
                cursor,
                "SELECT smp_server_id, smp_notifier_id FROM {schema}.subscriptions"
                " WHERE ntf_service_assoc AND status = ANY(%s)",
                [list(_WANTED)],
            )
            while rows := await self._fetch(cursor, _SUMMED):
                by_server: defaultdict[int, list[bytes]] = defaultdict(list)
                for row in rows:
                    by_server[row.smp_server_id].append(row.smp_notifier_id)
                for ref, ids in by_server.items():
                    server = self._servers.get(ref)
                    if server is not None and server.service is not None:
                        server.counted += len(ids)
                        server.counted_hash = xor(server.counted_hash, ids_hash(ids))

    async def _look_for_twins(self) -> None:
        """What is twice here: device tokens in upper and lower case, queues by two spellings of their server."""
        rows = await self._all(
            "SELECT (array_agg(token_id ORDER BY status <> 'ACTIVE', updated_at DESC NULLS LAST, token_id))[2:] AS ids"
            " FROM {schema}.tokens GROUP BY push_provider, lower(encode(push_provider_token, 'escape')), verify_key"
            " HAVING count(*) > 1"
        )
        self._twice = frozenset(token_id for row in rows for token_id in row.ids)
        spellings: defaultdict[bytes, list[int]] = defaultdict(list)
        for ref, server in self._servers.items():
            spellings[server.address.identity].append(ref)
        found: set[bytes] = set()
        for refs in spellings.values():
            if len(refs) > 1:
                rows = await self._all(
                    "SELECT (array_agg(subscription_id ORDER BY status <> 'ACTIVE', smp_server_id))[2:] AS ids"
                    " FROM {schema}.subscriptions WHERE smp_server_id = ANY(%s) GROUP BY smp_notifier_id"
                    " HAVING count(*) > 1",
                    [refs],
                )
                found.update(subscription_id for row in rows for subscription_id in row.ids)
        self._queues_twice = frozenset(found)

    def _has(self, migration: str) -> bool:
        return migration in self._migrations

    # --- see `portable.Source`

    async def check_idle(self) -> None:
        """See `Source`. The reference's connections have no application name; those of psql and the like do."""
        await self._all("SELECT pg_stat_clear_snapshot()")  # a transaction keeps what it saw of them first
        [row] = await self._all(  # of other users it is not told what they are
            "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND coalesce(backend_type, 'client backend') = 'client backend'"
            " AND usename IS NOT NULL AND application_name = ''"
        )
        if row.n:
            raise StoreUnavailableError(
                f"{self.name}: a server uses this database (connections: {row.n}): stop the reference, then run this"
                " again"
            )

    async def tokens(self) -> int:
        """See `Source`."""
        [row] = await self._all("SELECT count(*) AS n FROM {schema}.tokens")
        return int(row.n)

    async def statistics(self) -> Mapping[str, Counts]:
        """See `Source`: the reference counts elsewhere."""
        return {}

    async def servers(self) -> AsyncIterator[Servers]:
        """See `Source`."""
        yield Servers([], Tally(self._unreadable))
        for refs in batches(list(self._first.values()), _SERVERS):
            moved = [
                moved_server(
                    s.address,
                    self.ahead,
                    active=s.active,
                    service=s.service,
                    counted=s.counted,
                    counted_hash=s.counted_hash,
                )
                for s in (self._servers[ref] for ref in refs)
            ]
            yield Servers(moved, Tally())

    async def read(self, after: bytes, limit: int) -> Slice:
        """See `Source`. A cursor: how many subscriptions there were before, and the last registration's id."""
        place, last = int.from_bytes(after[:8]), after[8:]
        found = await self._all(
            "SELECT token_id, push_provider, push_provider_token, status, verify_key, dh_priv_key, dh_secret, reg_code,"
            " cron_interval, cron_sent_at, updated_at FROM {schema}.tokens WHERE token_id > %s"
            " ORDER BY token_id LIMIT %s",
            [last, limit],
        )
        counts = await self._counts([row.token_id for row in found])
        rows = found[: fitting([counts[row.token_id] for row in found])]
        by_token: defaultdict[bytes, list[Row]] = defaultdict(list)
        for row in await self._queues([row.token_id for row in rows]):
            by_token[row.token_id].append(row)
        left_out: Tally[str] = Tally()
        moved = []
        for row in rows:
            of_token = by_token[row.token_id]
            if (one := self._registration(row, of_token, place, left_out)) is not None:
                moved.append(one)
            place += len(of_token)
        more = len(found) == limit or len(rows) < len(found)
        return Slice(moved, place.to_bytes(8) + bytes(rows[-1].token_id) if more else None, left_out)

    def _registration(self, row: Row, queues: Sequence[Row], place: int, left_out: Tally[str]) -> Moved | None:
        token = self.left_out.registration(
            left_out,
            row.token_id,
            len(queues),
            lambda: queues[0].subscription_id,
            lambda: moved_token(_token(row, len(queues)), self.ahead),
            skipped=row.token_id in self._skip,
            twice=row.token_id in self._twice,
        )
        return None if token is None else Moved(token, tuple(self._owned(queues, place, token.active_at, left_out)))

    async def _counts(self, token_ids: Sequence[bytes]) -> Mapping[bytes, int]:
        rows = await self._all(
            "SELECT token_id, count(*) AS n FROM {schema}.subscriptions WHERE token_id = ANY(%s) GROUP BY token_id",
            [list(token_ids)],
        )
        return Tally({row.token_id: row.n for row in rows})

    async def _queues(self, token_ids: Sequence[bytes]) -> Sequence[Row]:
        associated = "s.ntf_service_assoc" if self._has(CERTIFICATES) else "FALSE"
        return await self._all(
            "SELECT s.token_id, s.subscription_id, s.smp_server_id, s.smp_notifier_id, s.smp_notifier_key, s.status,"
            f" {associated} AS associated, extract(epoch FROM n.sent_at)::bigint AS sent_at, n.nmsg_nonce, n.nmsg_data"
            " FROM {schema}.subscriptions s LEFT JOIN {schema}.last_notifications n"
            " ON n.token_id = s.token_id AND n.subscription_id = s.subscription_id"
            " WHERE s.token_id = ANY(%s) ORDER BY s.token_id, s.subscription_id",
            [list(token_ids)],
        )

    def _owned(self, rows: Sequence[Row], place: int, created_at: int, left_out: Tally[str]) -> list[MovedQueue]:
        kept = [row for row in rows if row.sent_at is not None]
        order = {row.subscription_id: n for n, row in enumerate(sorted(kept, key=lambda r: r.sent_at), 1)}
        out = []
        for number, row in enumerate(rows, place + 1):
            try:
                server = self._server_of(row)
                associated = bool(row.associated) and server.service is not None
                last = self._notification(row, order, left_out)
                queue = ReferenceQueue(
                    row.subscription_id, row.smp_notifier_id, row.smp_notifier_key, row.status, associated
                )
                out.append(moved_queue(queue, server.address, number, created_at, last))
            except UnreadableError as e:
                self.left_out.add(left_out, f"subscriptions: {e}", row.subscription_id)
        return out

    def _server_of(self, row: Row) -> _Server:
        if row.subscription_id in self._queues_twice:
            raise UnreadableError(QUEUE_TWICE)
        server = self._servers.get(row.smp_server_id)
        if server is None:
            raise UnreadableError("their server is unknown, or cannot be read")
        return server

    def _notification(self, row: Row, order: Mapping[bytes, int], left_out: Tally[str]) -> MovedNotification | None:
        """A subscription is not lost with it."""
        if row.sent_at is None:
            return None
        try:
            return moved_notification(order[row.subscription_id], row.sent_at, row.nmsg_nonce, row.nmsg_data)
        except UnreadableError as e:
            self.left_out.add(left_out, f"notifications: {e}", row.subscription_id)
            return None

    # --- queries

    def _cursor(self, name: str) -> "psycopg.AsyncServerCursor[Any]":
        return self._connection.cursor(name, binary=True, row_factory=namedtuple_row)

    async def _execute(self, cursor: Any, query: str, parameters: Any = None) -> None:
        text = sql.SQL(cast("Any", query)).format(schema=sql.Identifier(self._schema))
        try:
            await cursor.execute(text, parameters)
        except psycopg.Error as e:
            raise self._error(e) from e

    async def _fetch(self, cursor: Any, size: int) -> Sequence[Row]:
        try:
            return cast("Sequence[Row]", await cursor.fetchmany(size))
        except psycopg.Error as e:
            raise self._error(e) from e

    async def _all(self, query: str, parameters: Any = None) -> Sequence[Row]:
        async with self._connection.cursor(
            binary=parameters is not None, row_factory=cast("Any", namedtuple_row)
        ) as cursor:
            await self._execute(cursor, query, parameters)
            try:
                return cast("Sequence[Row]", await cursor.fetchall()) if cursor.description else ()
            except psycopg.Error as e:
                raise self._error(e) from e

    def _error(self, e: psycopg.Error) -> StoreError:
        lost = isinstance(e, psycopg.OperationalError) and not isinstance(e, psycopg.errors.QueryCanceled)
        words = f"{self.name}: {_first_line(e)}"
        if lost:
            return StoreUnavailableError(f"{words}; see whether PostgreSQL runs, then run this again: it goes on")
        return StoreError(f"{words}; nothing was changed there: is it the reference's, and may this user read it all?")


def _token(row: Row, queues: int) -> ReferenceToken:
    return ReferenceToken(
        bytes(row.token_id),
        row.push_provider,
        row.push_provider_token,
        row.status,
        row.verify_key,
        row.dh_priv_key,
        row.dh_secret,
        row.reg_code,
        row.cron_interval,
        row.cron_sent_at,
        row.updated_at,
        queues,
    )


async def _connect(url: str) -> "psycopg.AsyncConnection[Any]":
    """What libpq says of a URL that it does not understand may hold the password; what the server says does not."""
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise StoreError(
            "--from: is no connection that PostgreSQL understands; give postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
            " (in USER and PASSWORD %40 for @, %2F for /, %3A for :, %25 for %)"
        ) from None
    try:
        return await psycopg.AsyncConnection.connect(
            url,
            autocommit=True,
            connect_timeout=int(given.get("connect_timeout") or _TIMEOUT),
            application_name="ntf-server import",
        )
    except (psycopg.Error, OSError, ValueError, UnicodeError) as e:
        words = _first_line(e)
        for secret in filter(None, (given.get("password"), given.get("sslpassword"))):
            words = words.replace(str(secret), "…")
    if "FATAL:" in words and "starting up" not in words and "too many" not in words:
        by_name = "; run this as that user of the machine (sudo -u), or give a host and a password"
        mend = by_name if "Peer auth" in words else "; mend the user, password or database of --from"
        raise StoreError(f"PostgreSQL refuses: {words}{mend}")
    raise StoreUnavailableError(f"PostgreSQL cannot be reached: {words}; start it, or mend --from")


def _first_line(e: BaseException) -> str:
    text = str(e).strip() or type(e).__name__
    return _shown(re.sub(r"\s+", " ", text.partition("\n")[0]))


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:300]
