"""Records as the SQLite store keeps them: sealed on the way in, opened on the way out."""

import functools
import sqlite3
from typing import Any, Final

from ntf_server.store.records import NewToken, Subscription, Token
from ntf_server.store.sealing import Sealer
from ntf_server.store.sqlite.keys import CLIENT_DH, CODE, DEVICE_TOKEN, NOTIFIER_KEY, SECRET, SERVER_DH
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import Reader
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus

TOKEN_COLUMNS: Final = (
    "t.ref, t.token_id, t.provider, t.device_token, t.verify_key, t.client_dh, t.server_dh, t.secret, t.code,"
    " t.status, t.reason, t.period"
)
TOKEN_WIDTH: Final = 12
SUBSCRIPTION_COLUMNS: Final = (
    "s.ref, s.subscription_id, v.address, s.notifier_id, s.notifier_key, s.status, s.error, s.association"
)
Row = tuple[Any, ...]


def token_record(row: Row, sealer: Sealer) -> Token:
    """A row of TOKEN_COLUMNS."""
    ref, token_id, provider, device_token, verify_key, client_dh, server_dh, secret, code, *rest = row
    status, reason, period = rest
    return Token(
        ref,
        token_id,
        DeviceToken(Provider(provider), sealer.open(device_token, DEVICE_TOKEN + token_id)),
        verify_key,
        sealer.open(client_dh, CLIENT_DH + token_id),
        sealer.open(server_dh, SERVER_DH + token_id),
        sealer.open(secret, SECRET + token_id),
        sealer.open(code, CODE + token_id),
        TokenStatus(status),
        InvalidReason(reason) if reason else None,
        period,
    )


@functools.lru_cache(maxsize=4096)  # they are few, and asked for with each notification
def server_address(blob: bytes) -> ServerAddress:
    """A value of servers.address."""
    return ServerAddress.parse(Reader(blob), "smp")


def subscription_record(row: Row, sealer: Sealer) -> Subscription:
    """A row of SUBSCRIPTION_COLUMNS."""
    ref, subscription_id, address, notifier_id, notifier_key, status, error, association = row
    return Subscription(
        ref,
        subscription_id,
        server_address(address),
        notifier_id,
        sealer.open(notifier_key, NOTIFIER_KEY + subscription_id),
        SubscriptionStatus(status),
        error,
        association,
    )


def insert_token(c: sqlite3.Connection, sealer: Sealer, new: NewToken, now: int) -> Token:
    """Make it."""
    seal, token_id = sealer.seal, new.token_id
    columns = {
        "token_id": token_id,
        "provider": new.device.provider,
        "device_lookup": sealer.lookup(new.device.provider, new.device.token),
        "device_token": seal(new.device.token, DEVICE_TOKEN + token_id),
        "verify_key": new.verify_key,
        "client_dh": seal(new.client_dh, CLIENT_DH + token_id),
        "server_dh": seal(new.server_dh, SERVER_DH + token_id),
        "secret": seal(new.secret, SECRET + token_id),
        "code": seal(new.code, CODE + token_id),
        "status": TokenStatus.REGISTERED,
        "verification_due": now,
        "registered_at": now,
        "created_at": now,
    }
    cursor = c.execute(f"INSERT INTO tokens ({', '.join(columns)}) VALUES (:{', :'.join(columns)})", columns)
    assert cursor.lastrowid is not None
    given = new.token_id, new.device, new.verify_key, new.client_dh, new.server_dh, new.secret, new.code
    return Token(cursor.lastrowid, *given, TokenStatus.REGISTERED, None, 0)
