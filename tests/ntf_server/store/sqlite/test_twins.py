"""Each batch statement against its twin: plain SQL that does the same row by row, on random databases."""

import ast
import importlib
import json
import random
import re
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntf_server.store import sqlite as package
from ntf_server.store.records import ACTIVE_SPANS
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.migrations import migrate
from ntf_server.store.sqlite.schema import migrations

Parameters = Mapping[str, Any] | tuple[Any, ...]
Rows = list[Any]
NOW: Final = 1_800_000_000
TABLES: Final = ("tokens", "servers", "subscriptions", "notifications", "deliveries", "gone")
MARKS: Final = ("json_each", "json_group_array", "WITH RECURSIVE")  # what only a statement for a batch has
_TOKEN_STATUS: Final = ("REGISTERED", "CONFIRMED", "ACTIVE", "ACTIVE", "ACTIVE", "INVALID", "EXPIRED")
_SUBSCRIPTION_STATUS: Final = ("NEW", "PENDING", "ACTIVE", "END", "AUTH")


# --- random databases


def _template() -> sqlite3.Connection:
    c = sqlite3.connect(":memory:", isolation_level=None)
    migrate(c, migrations(MasterKey(bytes(32))), None)
    return c


_EMPTY: Final = _template()


def _insert(c: sqlite3.Connection, table: str, **columns: Any) -> None:
    names = ", ".join(columns)
    c.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})", tuple(columns.values()))


def _lane(rng: random.Random) -> bytes:
    return rng.choice((b"AP", b"FC", b"WP" + b"a" * 16, b"WP" + b"b" * 16))


def _maybe(rng: random.Random, value: Any) -> Any:
    return value if rng.random() < 0.5 else None


def _fill(c: sqlite3.Connection, rng: random.Random) -> None:
    for ref in range(1, 4):
        _insert(c, "servers", ref=ref, address=b"server %d" % ref)
    tokens = rng.sample(range(1, 30), rng.randint(0, 6))
    for ref in tokens:
        _insert(
            c, "tokens", ref=ref, token_id=b"%024d" % ref, provider="AP", device_token=rng.randbytes(5),
            device_lookup=b"%d" % ref, verify_key=b"key", client_dh=b"", server_dh=b"",
            secret=rng.randbytes(3), code=rng.randbytes(3), status=rng.choice(_TOKEN_STATUS),
            period=rng.choice((0, 20, 60)), period_at=NOW + 100 * rng.randint(-72, 72) + ref,
            registration=rng.randint(0, 2),
            verification_due=_maybe(rng, NOW - rng.randint(0, 900)), check_due=_maybe(rng, NOW - rng.randint(0, 900)),
            registered_at=NOW - 5, created_at=NOW - 9, lane=_lane(rng), app=rng.choice(("", "app")),
            vapid_key=rng.choice((b"", b"key")), damaged=rng.choice((None, None, None, NOW)),
        )  # fmt: skip
    owners = [*tokens, *rng.sample(range(30, 40), 2)]  # two that are gone
    queues = rng.sample([(s, b"%d" % n) for s in range(1, 4) for n in range(6)], rng.randint(0, 14))
    seqs = rng.sample(range(1, 1000), len(queues))
    for ref, ((server, name), seq) in enumerate(zip(queues, seqs, strict=True), 1):
        owner = rng.choice(owners)
        _insert(
            c, "subscriptions", ref=ref, subscription_id=b"%024d" % ref, token=owner, server=server,
            notifier_id=name, notifier_key=b"key", status=rng.choice(_SUBSCRIPTION_STATUS),
            association=rng.randint(0, 2), created_at=NOW, spelling=(None, b"", b"spelling")[ref % 3],
        )  # fmt: skip
        if rng.random() < 0.8:
            _insert(
                c, "notifications", subscription=ref, token=owner, seq=seq, received_at=NOW - rng.randint(0, 100),
                nonce=rng.randbytes(rng.randint(0, 3)), meta=rng.randbytes(rng.randint(0, 3)),
                sent=rng.choice((0, 0, 1, 2)),
            )  # fmt: skip
    dues = rng.sample(range((NOW - 50) * 1000, (NOW + 50) * 1000), len(tokens))
    for ref, due_at in zip(tokens, dues, strict=True):
        if rng.random() < 0.7:
            lane = c.execute("SELECT lane FROM tokens WHERE ref = ?", (ref,)).fetchone()[0]
            _insert(
                c, "deliveries", token=ref, lane=lane, due_at=_maybe(rng, due_at), attempts=rng.randint(0, 3),
                push_id=_maybe(rng, rng.randbytes(16)), pushed_at=_maybe(rng, NOW - 3), ended=_maybe(rng, "again"),
                reason=_maybe(rng, "busy"), delivered_at=_maybe(rng, NOW - 4),
            )  # fmt: skip
            if ref % 3 == 0:  # its code waits for its turn, and it for that
                code = NOW + rng.randint(-1, 2)
                c.execute("UPDATE tokens SET verification_due = ? WHERE ref = ?", (code, ref))
                c.execute("UPDATE deliveries SET due_at = ? WHERE token = ?", (code * 1000, ref))


def _pair(rng: random.Random) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    first, second = (sqlite3.connect(":memory:", isolation_level=None) for _ in range(2))
    _EMPTY.backup(first)
    _fill(first, rng)
    first.backup(second)
    return first, second


def _content(c: sqlite3.Connection) -> dict[str, Rows]:
    return {table: sorted(c.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in TABLES}


def _refs(c: sqlite3.Connection, rng: random.Random, table: str = "tokens", column: str = "ref") -> list[int]:
    """Some of those that are there, and some that are not; each once."""
    there = [ref for (ref,) in c.execute(f"SELECT {column} FROM {table}")]
    return [*rng.sample(there, rng.randint(0, len(there))), *rng.sample(range(1000, 1010), rng.randint(0, 2))]


# --- the twins


@dataclass(frozen=True)
class Twin:
    """Parameters of a statement, drawn at random, and what does the same row by row; `rows`: what both give."""

    parameters: Callable[[sqlite3.Connection, random.Random], Parameters]
    by_row: Callable[[sqlite3.Connection, Any], Rows]
    changes: bool = True


TWINS: Final[dict[str, Twin]] = {}


def _hex(value: bytes | None) -> str:
    return (value or b"").hex().upper()


def _of(c: sqlite3.Connection, query: str, *parameters: Any) -> Any:
    return c.execute(query, parameters).fetchone()


# content.py


def _tokens(c: sqlite3.Connection, p: Any) -> Rows:
    out = []
    for ref in json.loads(p["refs"]):
        t = _of(
            c,
            "SELECT ref, lane, registration, registered_at, status, verification_due, check_due, token_id,"
            " device_token, secret, code, app, vapid_key FROM tokens WHERE ref = ? AND damaged IS NULL",
            ref,
        )
        if t is None:
            continue
        d = _of(c, "SELECT attempts, push_id, delivered_at FROM deliveries WHERE token = ?", ref) or (0, None, None)
        out.append(
            [
                *(t[0], _hex(t[1]), *t[2:7], _hex(t[7]), _hex(t[8]), _hex(t[9])),
                "" if t[5] is None else _hex(t[10]),
                *(d[0], _hex(d[1]) if d[0] > 0 else "", int(d[2] is not None), t[11], _hex(t[12])),
            ]
        )
    return out


def _notifications(chosen: str) -> Callable[[sqlite3.Connection, Any], Rows]:
    def by_row(c: sqlite3.Connection, p: Any) -> Rows:
        out = []
        for token in json.loads(p["refs"]):
            query = f"SELECT subscription FROM notifications WHERE token = ? AND {chosen} LIMIT ?"
            oldest = (p["oldest"],) if "oldest" in p else ()
            for (ref,) in c.execute(query, (token, *oldest, p["limit"])).fetchall():
                n = _of(c, "SELECT seq, received_at, nonce, meta FROM notifications WHERE subscription = ?", ref)
                s = _of(c, "SELECT server, notifier_id, spelling FROM subscriptions WHERE ref = ?", ref)
                out.append([token, ref, n[0], s[0], _hex(s[1]), n[1], _hex(n[2]), _hex(n[3]), _hex(s[2])])
        return out

    return by_row


def _expire(c: sqlite3.Connection, p: Any) -> Rows:
    for token in json.loads(p["refs"]):
        query = "UPDATE notifications SET sent = 2 WHERE token = ? AND sent = 0 AND received_at <= ?"
        c.execute(query, (token, p["oldest"]))
    return []


def _asked(c: sqlite3.Connection, rng: random.Random) -> dict[str, Any]:
    return {"refs": json.dumps(_refs(c, rng)), "limit": rng.randint(1, 7)}


TWINS["content._TOKENS"] = Twin(lambda c, rng: {"refs": json.dumps(_refs(c, rng))}, _tokens, changes=False)
TWINS["content._UNSENT"] = Twin(_asked, _notifications("sent = 0 ORDER BY seq"), changes=False)
TWINS["content._SENT_BEFORE"] = Twin(_asked, _notifications("sent = 1 ORDER BY seq DESC"), changes=False)
TWINS["content._UNSENT_IN_TIME"] = Twin(
    lambda c, rng: {**_asked(c, rng), "oldest": NOW - rng.randint(0, 100)},
    _notifications("sent = 0 AND received_at > ? ORDER BY seq"),
    changes=False,
)
TWINS["content._EXPIRE"] = Twin(
    lambda c, rng: {"refs": json.dumps(_refs(c, rng)), "oldest": NOW - rng.randint(0, 100), "limit": 1000}, _expire
)

# deliveries.py


def _block(c: sqlite3.Connection, rng: random.Random) -> dict[str, Any]:
    names = [b"%d" % rng.randrange(8) for _ in range(rng.randint(1, 6))]
    nonce_size, meta_size = rng.randint(0, 3), rng.randint(0, 3)
    return {
        "server": rng.randint(1, 3),
        "at": NOW * 1000,
        "count": len(names),
        "first": rng.randint(1, 1000),
        "received_at": NOW,
        "id_size": 1,
        "nonce_size": nonce_size,
        "meta_size": meta_size,
        "ids": b"".join(names),
        "nonces": rng.randbytes(nonce_size * len(names)),
        "metas": rng.randbytes(meta_size * len(names)),
    }


def _parts(p: Any, n: int) -> tuple[bytes, bytes, bytes]:
    return tuple(p[f"{x}s"][n * p[f"{x}_size"] : (n + 1) * p[f"{x}_size"]] for x in ("id", "nonce", "meta"))  # type: ignore[return-value]


def _notify(c: sqlite3.Connection, p: Any) -> Rows:
    for n in range(p["count"]):
        name, nonce, meta = _parts(p, n)
        queue = _of(c, "SELECT ref, token FROM subscriptions WHERE server = ? AND notifier_id = ?", p["server"], name)
        if queue is None:
            continue
        newest = _of(c, "SELECT seq FROM notifications WHERE subscription = ?", queue[0])
        seq = p["first"] + n
        if newest is None:
            _insert(
                c, "notifications", subscription=queue[0], token=queue[1], seq=seq, received_at=p["received_at"],
                nonce=nonce, meta=meta, sent=0,
            )  # fmt: skip
        elif newest[0] < seq:
            c.execute(
                "UPDATE notifications SET seq = ?, received_at = ?, nonce = ?, meta = ?, sent = 0"
                " WHERE subscription = ?",
                (seq, p["received_at"], nonce, meta, queue[0]),
            )
    return []


def _owners(c: sqlite3.Connection, p: Any) -> Rows:
    out = []
    for n in range(p["count"]):
        name, _, _ = _parts(p, n)
        queue = _of(c, "SELECT token FROM subscriptions WHERE server = ? AND notifier_id = ?", p["server"], name)
        token = queue and _of(c, "SELECT ref, lane, status, damaged, subscriptions FROM tokens WHERE ref = ?", queue[0])
        if token:
            due = _of(c, "SELECT due_at FROM deliveries WHERE token = ?", token[0])
            waits = due is not None and due[0] is not None
            for_code = waits and _waits_for_code(c, token[0], due[0], p["at"])
            damaged = token[3] is not None
            out.append([token[0], _hex(token[1]), token[2], *map(int, (waits, for_code, damaged)), token[4]])
    return out


def _waits_for_code(c: sqlite3.Connection, ref: int, due_at: int, now: int) -> bool:
    [code] = _of(c, "SELECT verification_due FROM tokens WHERE ref = ?", ref)
    return due_at > now and code is not None and due_at == code * 1000


def _receipts(c: sqlite3.Connection, rng: random.Random) -> dict[str, Any]:
    known = c.execute("SELECT subscription, seq FROM notifications").fetchall()
    rows = dict(rng.sample(known, rng.randint(0, len(known)))) | {1: 7, 999: 1}
    return {"rows": json.dumps(rows)}


def _sent(c: sqlite3.Connection, p: Any) -> Rows:
    for subscription, seq in json.loads(p["rows"]).items():
        query = "UPDATE notifications SET sent = 1 WHERE subscription = ? AND seq = ? AND sent = 0"
        c.execute(query, (int(subscription), seq))
    return []


def _outcomes(*more: Callable[[random.Random], Any]) -> Callable[[sqlite3.Connection, random.Random], dict[str, Any]]:
    """Rows of token, registration (right or not), and so on."""

    def parameters(c: sqlite3.Connection, rng: random.Random) -> dict[str, Any]:
        rows = [[ref, rng.randint(0, 2), *(make(rng) for make in more)] for ref in _refs(c, rng)]
        return {"rows": json.dumps(rows)}

    return parameters


def _checks(c: sqlite3.Connection, rng: random.Random) -> dict[str, Any]:
    return {**_outcomes()(c, rng), "now": NOW}


def _same(c: sqlite3.Connection, update: str, given: Any, *values: Any) -> None:
    c.execute(f"UPDATE tokens SET {update} WHERE ref = ? AND registration = ?", (*values, given[0], given[1]))


def _verified(c: sqlite3.Connection, p: Any) -> Rows:
    for row in json.loads(p["rows"]):
        _same(c, "verification_due = NULL", row)
        query = "UPDATE tokens SET status = 'CONFIRMED' WHERE ref = ? AND registration = ? AND status = 'REGISTERED'"
        c.execute(query, (row[0], row[1]))
    return []


def _checked(c: sqlite3.Connection, p: Any) -> Rows:
    for row in json.loads(p["rows"]):
        _same(c, "check_due = NULL, period_at = ?", row, p["now"])
    return []


def _dead(c: sqlite3.Connection, p: Any) -> Rows:
    for row in json.loads(p["rows"]):
        _same(c, "status = 'INVALID', reason = ?, verification_due = NULL, check_due = NULL", row, row[2])
    return []


def _delivers(c: sqlite3.Connection, rng: random.Random) -> dict[str, Any]:
    refs = _refs(c, rng)
    return {"rows": json.dumps(refs), "push_ids": rng.randbytes(16 * len(refs)), "now": NOW}


def _delivered(c: sqlite3.Connection, p: Any) -> Rows:
    for n, ref in enumerate(json.loads(p["rows"])):
        c.execute(
            "UPDATE deliveries SET due_at = NULL, attempts = 0, push_id = ?, pushed_at = ?, ended = 'delivered',"
            " reason = '', delivered_at = ? WHERE token = ?",
            (p["push_ids"][16 * n : 16 * n + 16], p["now"], p["now"], ref),
        )
    return []


def _ends(c: sqlite3.Connection, rng: random.Random) -> dict[str, Any]:
    due_at = NOW * 1000 + rng.randint(0, 9)
    rows = [[ref, _maybe(rng, due_at), rng.randint(0, 3), "again", "words"] for ref in _refs(c, rng)]
    return {"rows": json.dumps(rows), "push_ids": rng.randbytes(16 * len(rows)), "now": NOW}


def _ended(c: sqlite3.Connection, p: Any) -> Rows:
    for n, (ref, due_at, attempts, ended, reason) in enumerate(json.loads(p["rows"])):
        c.execute(
            "UPDATE deliveries SET due_at = ?, attempts = ?, push_id = ?, pushed_at = ?, ended = ?, reason = ?"
            " WHERE token = ?",
            (due_at, attempts, p["push_ids"][16 * n : 16 * n + 16], p["now"], ended, reason, ref),
        )
    return []


def _untried(c: sqlite3.Connection, p: Any) -> Rows:
    for ref, due_at in json.loads(p["rows"]):
        c.execute("UPDATE deliveries SET due_at = ? WHERE token = ?", (due_at, ref))
    return []


TWINS["deliveries._NOTIFY"] = Twin(_block, _notify)
TWINS["deliveries._OWNERS"] = Twin(_block, _owners, changes=False)
TWINS["deliveries._SENT"] = Twin(_receipts, _sent)
TWINS["deliveries._VERIFIED"] = Twin(_outcomes(), _verified)
TWINS["deliveries._CHECKED"] = Twin(_checks, _checked)
TWINS["deliveries._DEAD"] = Twin(_outcomes(lambda rng: rng.choice(("BAD", "TOPIC"))), _dead)
TWINS["deliveries._DELIVERED"] = Twin(_delivers, _delivered)
TWINS["deliveries._ENDED"] = Twin(_ends, _ended)
TWINS["deliveries._UNTRIED"] = Twin(
    lambda c, rng: {"rows": json.dumps([[ref, _maybe(rng, NOW * 1000)] for ref in _refs(c, rng)])}, _untried
)

# due.py


def _mark(c: sqlite3.Connection, p: Any) -> Rows:
    for ref in json.loads(p["refs"]):
        damaged = _of(c, "SELECT damaged FROM tokens WHERE ref = ?", ref)
        due = _of(c, "SELECT due_at FROM deliveries WHERE token = ?", ref)
        if damaged == (None,) and due and (due[0] is None or _waits_for_code(c, ref, due[0], p["at"])):
            c.execute("UPDATE deliveries SET due_at = ? WHERE token = ?", (p["at"], ref))
    return []


def _lanes(c: sqlite3.Connection, p: Any) -> Rows:
    rows = [_of(c, "SELECT lane FROM deliveries WHERE token = ?", ref) for ref in json.loads(p["refs"])]
    return sorted({_hex(row[0]) for row in rows if row})


def _marked(c: sqlite3.Connection, rng: random.Random) -> dict[str, Any]:
    return {"refs": json.dumps(_refs(c, rng)), "at": NOW * 1000}


TWINS["due._MARK"] = Twin(_marked, _mark)
TWINS["due._LANES"] = Twin(_marked, _lanes, changes=False)

# sessions.py


def _lost(c: sqlite3.Connection, p: Any) -> Rows:
    out: Rows = []
    for ref in json.loads(p["refs"]):
        query = "SELECT status, damaged, check_due FROM tokens WHERE ref = ?"
        token = c.execute(query, (ref,)).fetchone()
        delivery = c.execute("SELECT delivered_at FROM deliveries WHERE token = ?", (ref,)).fetchone()
        if token is None or delivery is None or token != ("ACTIVE", None, None):
            continue
        [at] = delivery
        unsent = c.execute("SELECT 1 FROM notifications WHERE token = ? AND sent = 0", (ref,)).fetchone()
        if unsent is None and (at is None or not p["since"] <= at <= p["now"]):
            out.append(ref)
    return out


TWINS["sessions._TO_CHECK"] = Twin(
    lambda c, rng: {"refs": json.dumps(_refs(c, rng)), "now": NOW, "since": NOW - rng.randint(0, 100)},
    _lost,
    changes=False,
)

# taking.py


def _oldest(c: sqlite3.Connection, p: Any) -> Rows:
    out = []
    for token, lane, due_at in c.execute("SELECT token, lane, due_at FROM deliveries ORDER BY due_at"):
        if lane == p["lane"] and due_at is not None and due_at <= p["now"] and len(out) < p["limit"]:
            out.append([token, due_at])
    return out


def _each(statement: str) -> Callable[[sqlite3.Connection, Any], Rows]:
    """The statement for one row, for each of those that are given; the others of its parameters go before."""

    def by_row(c: sqlite3.Connection, p: Any) -> Rows:
        *before, given = p
        for ref in json.loads(given):
            c.execute(statement, (*before, ref))
        return []

    return by_row


def _given(table: str, column: str, *before: int) -> Callable[[sqlite3.Connection, random.Random], Parameters]:
    return lambda c, rng: (*before, json.dumps(_refs(c, rng, table, column)))


TWINS["taking._OLDEST"] = Twin(
    lambda _, rng: {"lane": _lane(rng), "now": NOW * 1000, "limit": rng.randint(1, 4)}, _oldest, changes=False
)
TWINS["taking._TAKEN"] = Twin(
    _given("deliveries", "token"), _each("UPDATE deliveries SET due_at = NULL WHERE token = ?")
)

# tokens.py


def _to_check(c: sqlite3.Connection, p: Any) -> Rows:
    over = []
    for ref, period, period_at, status, due in c.execute(
        "SELECT ref, period, period_at, status, check_due FROM tokens"
    ):
        delay = (ref * 1000003 + period_at) % (period * 6) if period else 0
        if period > 0 and status == "ACTIVE" and due is None and period_at + period * 60 + delay <= p["now"]:
            over.append((period_at + period * 60, ref))
    return [ref for _, ref in sorted(over)][: p["limit"]]


def _from_the_future(c: sqlite3.Connection, p: Any) -> Rows:
    rows = c.execute("SELECT ref, period, period_at, status, check_due FROM tokens").fetchall()
    return [r for r, period, at, status, due in rows if period and at > p["now"] and status == "ACTIVE" and due is None]


def _delivered_to(c: sqlite3.Connection, rng: random.Random) -> dict[str, Any]:
    query = "SELECT token FROM deliveries WHERE delivered_at IS NOT NULL"
    refs = [ref for (ref,) in c.execute(query) if rng.random() < 0.7]
    return {"refs": json.dumps(refs), "now": NOW + rng.randint(-10, 10)}


def _woken(c: sqlite3.Connection, p: Any) -> Rows:
    out = []
    for ref in json.loads(p["refs"]):
        token = _of(c, "SELECT period, period_at FROM tokens WHERE ref = ?", ref)
        row = _of(c, "SELECT delivered_at FROM deliveries WHERE token = ?", ref)
        if token and row and row[0] is not None:
            began = max(token[1], p["now"] - token[0] * 60)
            out += [ref] if began < row[0] <= p["now"] else []
    return out


def _put_off(c: sqlite3.Connection, p: Any) -> Rows:
    for ref in json.loads(p["refs"]):
        [at] = _of(c, "SELECT delivered_at FROM deliveries WHERE token = ?", ref)
        c.execute("UPDATE tokens SET period_at = ? WHERE ref = ?", (at, ref))
    return []


TWINS["tokens._WOKEN"] = Twin(
    lambda c, rng: {"refs": json.dumps(_refs(c, rng)), "now": NOW + rng.randint(-10, 10)}, _woken, changes=False
)
TWINS["tokens._PUT_OFF"] = Twin(_delivered_to, _put_off)
TWINS["tokens._TO_CHECK"] = Twin(
    lambda _, rng: {"now": NOW + rng.randint(0, 9000), "limit": rng.randint(1, 4)}, _to_check, changes=False
)
TWINS["tokens._FROM_THE_FUTURE"] = Twin(lambda _, rng: {"now": NOW, "limit": 100}, _from_the_future, changes=False)

# census.py


def _census(c: sqlite3.Connection, p: Any) -> Rows:
    kinds: dict[tuple[str, str, str], list[int]] = {}
    query = "SELECT ref, provider, status, damaged, hex(vapid_key) FROM tokens WHERE ref > ? ORDER BY ref LIMIT ?"
    for ref, provider, status, damaged, key in c.execute(query, (p["after"], p["limit"])).fetchall():
        found = provider, status if damaged is None else "damaged", key
        kind = kinds.setdefault(found, [0] * (2 + len(ACTIVE_SPANS)))
        kind[0], kind[1] = ref, kind[1] + 1
        [delivered_at] = _of(c, "SELECT delivered_at FROM deliveries WHERE token = ?", ref) or [None]
        for n, seconds in enumerate(ACTIVE_SPANS.values(), 2):
            kind[n] += delivered_at is not None and p["now"] - delivered_at < seconds
    return [[*kind, *kinds[kind]] for kind in sorted(kinds)]


def _spans(_: sqlite3.Connection, rng: random.Random) -> dict[str, Any]:
    """Deliveries of the databases are NOW - 4: before, within and behind each span."""
    ahead = rng.choice((-10, 3, *(seconds - 4 + n for seconds in ACTIVE_SPANS.values() for n in (-1, 0))))
    return {"after": rng.randint(0, 20), "limit": rng.randint(1, 6), "now": NOW + ahead}


TWINS["census._COUNT"] = Twin(_spans, _census, changes=False)


# upkeep.py


def _undue(c: sqlite3.Connection, p: Any) -> Rows:
    for ref in json.loads(p[0]):
        unsent = _of(c, "SELECT 1 FROM notifications WHERE token = ? AND sent = 0", ref)
        due = _of(c, "SELECT verification_due, check_due FROM tokens WHERE ref = ?", ref)
        if not unsent and (due is None or due == (None, None)):
            query = "UPDATE deliveries SET due_at = NULL, attempts = 0 WHERE token = ? AND due_at IS NOT NULL"
            c.execute(query, (ref,))
    return []


TWINS["upkeep._UNDUE"] = Twin(_given("tokens", "ref"), _undue)


# portable.py


def _queues(c: sqlite3.Connection, p: Any) -> Rows:
    rows: list[tuple[Any, ...]] = []
    for token in json.loads(p[0]):
        found = c.execute("SELECT * FROM subscriptions WHERE token = ?", (token,))
        names = [column for column, *_ in found.description]
        for queue in found.fetchall():
            kept = dict(zip(names, queue, strict=True))
            address, generation = _of(c, "SELECT address, generation FROM servers WHERE ref = ?", kept["server"]) or (
                None,
                None,
            )
            has = int(kept["status"] in {"NEW", "PENDING", "ACTIVE"} and kept["association"] == generation)
            query = "SELECT seq, received_at, nonce, meta, sent FROM notifications WHERE subscription = ?"
            notification = _of(c, query, kept["ref"]) or (None,) * 5
            rows.append((*queue, address, has if kept["association"] > 0 else 0, *notification))
    return sorted(rows, key=lambda row: row[0])


TWINS["portable._QUEUES"] = Twin(_given("tokens", "ref"), _queues, changes=False)


# queues.py


def _queues(c: sqlite3.Connection, p: Any) -> Rows:
    out = []
    for ref in json.loads(p[0]):
        columns = "server, notifier_id, status, association, ref"
        row = _of(c, f"SELECT {columns} FROM subscriptions WHERE ref = ?", ref)
        if row:
            address, generation = _of(c, "SELECT address, generation FROM servers WHERE ref = ?", row[0])
            wanted = row[2] in ("NEW", "PENDING", "ACTIVE")
            associated = int(row[3] > 0 and row[3] == generation)
            out.append((row[0], address, row[1], int(wanted), associated, ref, row[3], int(row[2] == "ACTIVE")))
    return out


TWINS["queues._OF_SERVERS"] = Twin(_given("subscriptions", "ref"), _queues, changes=False)


# --- statements of one form, which are their own twins: those rows and no others

_AMONG: Final = re.compile(r"(\w+) IN \(SELECT value FROM json_each\((\?|:\w+)\)\)")


def _texts(node: ast.AST, names: Mapping[str, object]) -> list[str]:
    """The strings of a piece of code, those that are put together with what these names stand for."""
    out: list[str] = []
    inner: set[ast.AST] = set()
    for n in ast.walk(node):
        if isinstance(n, ast.JoinedStr):
            inner |= set(ast.walk(n)) - {n}
            parts = [v.value if isinstance(v, ast.Constant) else names[ast.unparse(v.value)] for v in n.values]  # type: ignore[attr-defined]
            out.append("".join(map(str, parts)))
        elif isinstance(n, ast.Constant) and isinstance(n.value, str) and n not in inner:
            out.append(n.value)
    return out


def _is_batch(text: str) -> bool:
    return any(mark in text for mark in MARKS)


def _found() -> tuple[set[str], dict[str, str]]:
    """Names of constants that are statements of batches, and texts of those in functions."""
    constants: set[str] = set()
    inline: dict[str, str] = {}
    for path in sorted(Path(package.__path__[0]).glob("*.py")):
        if path.stem in ("schema", "upgrades", "migrations"):
            continue
        module = importlib.import_module(f"{package.__name__}.{path.stem}")
        constants |= {
            f"{path.stem}.{name}"
            for name, value in vars(module).items()
            if isinstance(value, str) and _is_batch(value) and name.isupper() and f"\n{name}: Final" in path.read_text()
        }
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                for what in ("verification", "check"):
                    for text in filter(_is_batch, _texts(node, _Names(vars(module), what))):
                        if not text.startswith(("See", "A block")):
                            inline[text] = f"{path.stem}.{node.name}"
    return constants, inline


class _Names(dict[str, object]):
    """What stands between braces in statements."""

    def __init__(self, names: Mapping[str, object], what: str) -> None:
        super().__init__(names, what=what)

    def __missing__(self, name: str) -> str:
        return name


CONSTANTS, INLINE = _found()


def _alone(statement: str) -> Callable[[sqlite3.Connection, Any], Rows]:
    """The same for one row, for each of those that are given."""
    plain = _AMONG.sub(r"\1 = \2", statement)

    def by_row(c: sqlite3.Connection, p: Any) -> Rows:
        out = []
        for ref in json.loads(p["refs"] if isinstance(p, dict) else p[-1]):
            out += c.execute(plain, {**p, "refs": ref} if isinstance(p, dict) else (*p[:-1], ref)).fetchall()
        return out

    return by_row


def _for_inline(statement: str) -> Twin:
    match = _AMONG.search(statement)
    assert match, statement
    table = re.findall(r"(?:UPDATE|FROM) (\w+)", statement[: match.start()])[0]
    before = (NOW,) * (statement.count("?") - 1)

    def parameters(c: sqlite3.Connection, rng: random.Random) -> Parameters:
        refs = json.dumps(_refs(c, rng, table, match[1]))
        return (*before, refs) if match[2] == "?" else {"refs": refs, "now": NOW}

    return Twin(parameters, _alone(statement), changes=not statement.startswith("SELECT"))


TWINS |= {text: _for_inline(text) for text in INLINE}


# --- the tests


def _statement(where: str) -> str:
    if where in INLINE:
        return where
    module, name = where.split(".")
    return str(getattr(importlib.import_module(f"{package.__name__}.{module}"), name))


def _result(c: sqlite3.Connection, statement: str, parameters: Parameters) -> Rows:
    rows = c.execute(statement, parameters).fetchall()
    return list(json.loads(rows[0][0])) if rows and "json_group_array" in statement else rows


@pytest.mark.parametrize("where", sorted(TWINS))
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_a_batch_does_what_its_twin_does(where: str, rng: random.Random) -> None:
    twin = TWINS[where]
    batch, plain = _pair(rng)
    parameters = twin.parameters(batch, rng)
    before = _content(batch)
    given_by_batch = _result(batch, _statement(where), parameters)
    given_by_twin = twin.by_row(plain, parameters)
    if where in ("taking._OLDEST", "tokens._TO_CHECK"):
        assert given_by_batch == given_by_twin
    assert sorted(given_by_batch, key=repr) == sorted(given_by_twin, key=repr)
    assert _content(batch) == _content(plain)
    assert twin.changes or _content(batch) == before


@pytest.mark.parametrize("where", sorted(TWINS))
def test_each_twin_has_something_to_do(where: str) -> None:
    """A statement that changes, and gives, nothing would be like any twin."""
    for seed in range(300):
        rng = random.Random(seed)
        batch, _ = _pair(rng)
        before = _content(batch)
        result = _result(batch, _statement(where), TWINS[where].parameters(batch, rng))
        if (_content(batch) != before) if TWINS[where].changes else len(result) > 1:
            return
    raise AssertionError("no example had an effect")


def test_every_batch_statement_has_a_twin() -> None:
    parts = {"content._NOTIFICATIONS", "deliveries._EACH"}  # of statements below them
    assert CONSTANTS - parts | INLINE.keys() == set(TWINS)
    assert len(INLINE) > 5
