"""Records as the SQLite store keeps them: sealed on the way in, opened on the way out; and damaged ones."""

import functools
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from ntf_server.observe.events import Event, EventLog
from ntf_server.store.contract import DamagedRecordError
from ntf_server.store.memory import State
from ntf_server.store.records import NewToken, Registered, Subscription, Token
from ntf_server.store.sealing import CLIENT_DH, CODE, DEVICE_TOKEN, SECRET, SERVER_DH, Sealer
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import Reader
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus

events = EventLog(__name__)

TOKEN_COLUMNS: Final = "t.ref, t.token_id, t.verify_key, t.status, t.reason, t.period, t.active_at, t.proven, t.damaged"
TOKEN_WIDTH: Final = 9
# To be asked with servers as v.
SUBSCRIPTION_COLUMNS: Final = (
    "s.ref, s.subscription_id, v.address, s.notifier_id, s.status, s.error, s.association,"
    " s.association > 0 AND s.association = v.generation, s.damaged"
)
Row = tuple[Any, ...]
Rows = list[list[Any]]
Table = Literal["tokens", "subscriptions"]
NO_IDS: Final = bytes(16)


def one_row(c: sqlite3.Connection, query: str, parameters: Mapping[str, Any]) -> Any:
    """The JSON in the one row of a query's answer, parsed."""
    [text] = c.execute(query, parameters).fetchone()
    return msgspec.json.decode(text)  # in half the time that `json` takes


class DamagedRowError(Exception):
    """A row that cannot be read: it is to be quarantined, unless it is `set_aside` already."""

    def __init__(self, table: Table, ref: int, *, set_aside: bool = False) -> None:
        super().__init__(f"row {ref} of {table} cannot be read")
        self.table: Table = table
        self.ref = ref
        self.set_aside = set_aside

    def told(self) -> DamagedRecordError:
        """What the caller hears of it."""
        return DamagedRecordError(str(self))


def token_record(row: Row) -> Token:
    """A row of TOKEN_COLUMNS. Raises DamagedRowError."""
    ref, token_id, verify_key, status, reason, period, active_at, proven, damaged = row
    if damaged is not None:
        raise DamagedRowError("tokens", ref, set_aside=True)
    why = InvalidReason(reason) if reason else None
    return Token(ref, token_id, verify_key, TokenStatus(status), why, period, active_at, bool(proven))


@functools.lru_cache(maxsize=4096)  # they are few, and asked for with each notification
def server_address(blob: bytes) -> ServerAddress:
    """A value of servers.address, or of subscriptions.spelling."""
    return ServerAddress.parse(Reader(blob), "smp")


def subscription_record(row: Row) -> Subscription:
    """A row of SUBSCRIPTION_COLUMNS. Raises DamagedRowError."""
    ref, subscription_id, address, notifier_id, status, error, association, associated, damaged = row
    if damaged is not None:
        raise DamagedRowError("subscriptions", ref, set_aside=True)
    return Subscription(
        ref,
        subscription_id,
        server_address(address),
        notifier_id,
        SubscriptionStatus(status),
        error,
        bool(associated),
        (association, ref),
    )


def lane_of(sealer: Sealer, device: DeviceToken, origin: str) -> bytes:
    """The lane that a device token is pushed through, as it is kept."""
    provider = device.provider
    return provider.encode() + (sealer.origin(origin) if provider is Provider.WEB_PUSH else b"")


def insert_token(c: sqlite3.Connection, s: State, new: NewToken, lane: bytes, due: int) -> Registered:
    """Make it; its code is due then."""
    seal, token_id = s.sealer.seal, new.token_id
    columns = {
        "token_id": token_id,
        "provider": new.device.provider,
        "lane": lane,
        "app": new.app,
        "vapid_key": new.vapid_key,
        "device_lookup": s.sealer.lookup(new.device.provider, new.device.token),
        "device_token": seal(new.device.token, DEVICE_TOKEN + token_id),
        "verify_key": new.verify_key,
        "client_dh": seal(new.client_dh, CLIENT_DH + token_id),
        "server_dh": seal(new.server_dh, SERVER_DH + token_id),
        "secret": seal(new.secret, SECRET + token_id),
        "code": seal(new.code, CODE + token_id),
        "status": TokenStatus.REGISTERED,
        "verification_due": due,
        "registered_at": s.now,
        "created_at": s.now,
        "active_at": s.now,
    }
    cursor = c.execute(f"INSERT INTO tokens ({', '.join(columns)}) VALUES (:{', :'.join(columns)})", columns)
    assert cursor.lastrowid is not None
    registered = TokenStatus.REGISTERED
    return Registered(cursor.lastrowid, token_id, new.verify_key, registered, None, 0, s.now, False, new.server_dh)


def quarantine(c: sqlite3.Connection, s: State, damaged: Iterable[DamagedRowError]) -> None:
    """Set these rows aside: nobody is pushed to, and nothing subscribed, for what cannot be read."""
    for row in damaged:
        query = f"UPDATE {row.table} SET damaged = ? WHERE ref = ? AND damaged IS NULL"
        if c.execute(query, (s.now, row.ref)).rowcount:
            text = "%s: it is set aside; register or subscribe it anew"
            events.tell(Event.RECORDS_DAMAGED, text, row, table=row.table, count=1)
            s.effects.quarantined[row.table] += 1
        if row.table == "tokens":
            c.execute("UPDATE deliveries SET due_at = NULL WHERE token = ?", (row.ref,))
            s.forget(row.ref)
