"""SMP servers and what is subscribed on them, in the SQLite store. Run inside a transaction."""

import json
import sqlite3
from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

from ntf_server.store.records import (
    Confirmed,
    Position,
    ServiceCertificate,
    ServiceState,
    ToAudit,
    Wanted,
)
from ntf_server.store.sealing import Sealer
from ntf_server.store.sqlite.keys import NOTIFIER_KEY, SERVICE_KEY
from ntf_server.store.sqlite.rows import server_address
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import SubscriptionStatus

WANTED: Final = "status IN ('NEW', 'PENDING', 'ACTIVE')"  # to the letter of the index subscriptions_server
_MAX_ADDRESSES: Final = 4096  # strangers may invent any number of servers
_COLUMNS: Final = "ref, association, status, notifier_id, notifier_key, subscription_id"


def server_ref(c: sqlite3.Connection, server: ServerAddress) -> int:
    """The server's row, made if there is none."""
    address = server.encode()
    row = c.execute("SELECT ref FROM servers WHERE address = ?", (address,)).fetchone()
    if row is None:
        row = c.execute("INSERT INTO servers (address) VALUES (?) RETURNING ref", (address,)).fetchone()
    return int(row[0])


class Addresses:
    """Addresses of rows, which never change."""

    def __init__(self) -> None:
        self._known: dict[int, ServerAddress] = {}

    def __call__(self, c: sqlite3.Connection, refs: Set[int]) -> Mapping[int, ServerAddress]:
        """Those of these rows, and others."""
        unknown: Set[int] = refs - self._known.keys()
        if unknown:
            if len(self._known) > _MAX_ADDRESSES:
                self._known.clear()
                unknown = refs
            query = "SELECT ref, address FROM servers WHERE ref IN (SELECT value FROM json_each(?))"
            rows = c.execute(query, (json.dumps(list(unknown)),))
            self._known.update((ref, server_address(address)) for ref, address in rows)
        return self._known


def wanted_servers(c: sqlite3.Connection) -> list[ServerAddress]:
    """Servers that have subscriptions to keep active."""
    rows = c.execute(
        f"SELECT address FROM servers v WHERE EXISTS (SELECT 1 FROM subscriptions WHERE server = v.ref AND {WANTED})"
    )
    return [server_address(address) for (address,) in rows]


def is_wanted(c: sqlite3.Connection, server: ServerAddress) -> bool:
    """Whether the server has any of them."""
    query = f"SELECT 1 FROM subscriptions WHERE server = ? AND {WANTED} LIMIT 1"
    return c.execute(query, (server_ref(c, server),)).fetchone() is not None


def _wanted(row: tuple[Any, ...], sealer: Sealer) -> Wanted:
    ref, association, status, notifier_id, key, subscription_id = row
    fresh = status != SubscriptionStatus.ACTIVE
    return Wanted(ref, association, fresh, notifier_id, sealer.open(key, NOTIFIER_KEY + subscription_id))


def page(
    c: sqlite3.Connection, sealer: Sealer, server: ServerAddress, *, after: Position, below: int, limit: int
) -> list[Wanted]:
    """See `Store.page`."""
    query = f"SELECT {_COLUMNS} FROM subscriptions WHERE server = ? AND {WANTED}"
    number, (association, ref) = server_ref(c, server), after
    rows: list[tuple[Any, ...]] = []
    if association < below:
        same = f"{query} AND association = ? AND ref > ? ORDER BY ref LIMIT ?"
        rows += c.execute(same, (number, association, ref, limit))
    if len(rows) < limit:  # a comparison of both columns at once would not use the index for the second
        later = f"{query} AND association > ? AND association < ? ORDER BY association, ref LIMIT ?"
        rows += c.execute(later, (number, association, below, limit - len(rows)))
    return [_wanted(row, sealer) for row in rows]


def load_wanted(c: sqlite3.Connection, sealer: Sealer, refs: Sequence[int]) -> list[Wanted]:
    """See `Store.load_wanted`."""
    query = f"SELECT {_COLUMNS} FROM subscriptions WHERE ref = ? AND {WANTED}"
    rows = (c.execute(query, (ref,)).fetchone() for ref in refs)
    return [_wanted(row, sealer) for row in rows if row is not None]


def confirm(c: sqlite3.Connection, results: Sequence[Confirmed]) -> None:
    """See `Store.confirm`."""
    c.executemany(  # an END that came with the answers must not be undone
        "UPDATE subscriptions SET status = ?, error = ?, association = coalesce(?, association)"
        f" WHERE ref = ? AND {WANTED}",
        [(r.status, r.error, r.association, r.ref) for r in results],
    )


def end(c: sqlite3.Connection, server: ServerAddress, notifier_ids: Sequence[bytes], status: SubscriptionStatus) -> int:
    """See `Store.end_subscriptions`."""
    ref = server_ref(c, server)
    query = "UPDATE subscriptions SET status = ? WHERE server = ? AND notifier_id = ?"
    known = sum(c.execute(query, (status, ref, notifier_id)).rowcount for notifier_id in notifier_ids)
    unknown = len(notifier_ids) - known  # the server counts them no more either
    if unknown:
        c.execute("UPDATE servers SET released = max(0, released - ?) WHERE ref = ?", (unknown, ref))
    return known


def to_audit(c: sqlite3.Connection, after: int, limit: int, silent_since: int) -> list[ToAudit]:
    """See `Store.to_audit`."""
    rows = c.execute(
        "SELECT s.ref, v.address, coalesce(n.received_at, s.created_at) < ? FROM subscriptions s"
        " JOIN servers v ON v.ref = s.server LEFT JOIN notifications n ON n.subscription = s.ref"
        f" WHERE s.ref > ? AND s.{WANTED} ORDER BY s.ref LIMIT ?",
        (silent_since, after, limit),
    )
    return [ToAudit(ref, server_address(address), bool(silent)) for ref, address, silent in rows]


# --- services


def certificate(c: sqlite3.Connection, sealer: Sealer, server: ServerAddress) -> ServiceCertificate | None:
    """See `Store.service_certificate`."""
    address = server.encode()
    row = c.execute("SELECT certificate, certificate_key FROM servers WHERE address = ?", (address,)).fetchone()
    if row is None or row[0] is None:
        return None
    return ServiceCertificate(row[0], sealer.open(row[1], SERVICE_KEY + address))


def set_certificate(c: sqlite3.Connection, sealer: Sealer, server: ServerAddress, new: ServiceCertificate) -> None:
    """See `Store.set_service_certificate`."""
    sealed = sealer.seal(new.key, SERVICE_KEY + server.encode())
    query = "UPDATE servers SET certificate = ?, certificate_key = ? WHERE ref = ?"
    c.execute(query, (new.chain, sealed, server_ref(c, server)))


def reseal_certificates(c: sqlite3.Connection, old: Sealer, new: Sealer) -> None:
    """Seal the keys of all services anew."""
    rows = c.execute("SELECT ref, address, certificate_key FROM servers WHERE certificate_key IS NOT NULL").fetchall()
    for ref, address, key in rows:
        context = SERVICE_KEY + address
        c.execute(
            "UPDATE servers SET certificate_key = ? WHERE ref = ?", (new.seal(old.open(key, context), context), ref)
        )


def begin_service(c: sqlite3.Connection, server: ServerAddress, service_id: bytes | None) -> ServiceState:
    """See `Store.begin_service`."""
    ref = server_ref(c, server)
    [before] = c.execute("SELECT service_id FROM servers WHERE ref = ?", (ref,)).fetchone()
    if before != service_id:
        c.execute(
            "UPDATE servers SET service_id = ?, generation = generation + 1, released = 0 WHERE ref = ?",
            (service_id, ref),
        )
    return _state(c, ref, changed=before is not None and before != service_id)


def service_state(c: sqlite3.Connection, server: ServerAddress) -> ServiceState:
    """See `Store.service_state`."""
    return _state(c, server_ref(c, server))


def reassociate(c: sqlite3.Connection, server: ServerAddress) -> ServiceState:
    """See `Store.reassociate`."""
    ref = server_ref(c, server)
    c.execute("UPDATE servers SET generation = generation + 1 WHERE ref = ?", (ref,))
    return _state(c, ref)


def set_released(c: sqlite3.Connection, server: ServerAddress, count: int) -> None:
    """See `Store.set_released`."""
    c.execute("UPDATE servers SET released = ? WHERE ref = ?", (count, server_ref(c, server)))


def _state(c: sqlite3.Connection, ref: int, *, changed: bool = False) -> ServiceState:
    generation, released = c.execute("SELECT generation, released FROM servers WHERE ref = ?", (ref,)).fetchone()
    [associated] = c.execute(
        f"SELECT count(*) FROM subscriptions WHERE server = ? AND association = ? AND {WANTED}",
        (ref, generation or -1),  # 0 stands for none
    ).fetchone()
    return ServiceState(generation, associated, released, changed)
