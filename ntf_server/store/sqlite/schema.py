"""The SQLite schema, as the migrations that make it: append, never change what was released.

AUTOINCREMENT: a ref is never used again, since an answer to something deleted may still be under way.
"""

import sqlite3
from functools import partial
from typing import Final

from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.keys import add_box_keys, add_keys
from ntf_server.store.sqlite.migrations import Migration, Progress
from ntf_server.store.sqlite.upgrades import add_lanes, count_associations, merge_servers, merge_twins, remember
from smp_bridge.places import ANYWHERE

SCHEMA_1: Final = """
    CREATE TABLE tokens (
        ref INTEGER PRIMARY KEY AUTOINCREMENT,
        token_id BLOB NOT NULL UNIQUE,
        provider TEXT NOT NULL,
        device_token BLOB NOT NULL,
        verify_key BLOB NOT NULL,
        client_dh BLOB NOT NULL,
        server_dh BLOB NOT NULL,
        secret BLOB NOT NULL,
        code BLOB NOT NULL,
        status TEXT NOT NULL,
        reason TEXT,
        period INTEGER NOT NULL DEFAULT 0,    -- minutes, of TCRN
        period_at INTEGER NOT NULL DEFAULT 0, -- when the running period began
        registration INTEGER NOT NULL DEFAULT 0, -- grows with each TNEW and TRPL
        verification_due INTEGER,             -- since when a push of the code is due
        check_due INTEGER,                    -- since when a periodic push is due
        created_at INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX tokens_device ON tokens (provider, device_token);
    CREATE INDEX tokens_due ON tokens (ref) WHERE verification_due IS NOT NULL OR check_due IS NOT NULL;
    CREATE INDEX tokens_period ON tokens (period_at) WHERE period > 0;

    CREATE TABLE servers (
        ref INTEGER PRIMARY KEY,
        address BLOB NOT NULL UNIQUE,         -- binary form of wire.md, section 1
        session INTEGER NOT NULL DEFAULT 0    -- number of the newest session
    ) STRICT;

    CREATE TABLE subscriptions (
        ref INTEGER PRIMARY KEY AUTOINCREMENT,
        subscription_id BLOB NOT NULL UNIQUE,
        token INTEGER NOT NULL REFERENCES tokens ON DELETE CASCADE,
        server INTEGER NOT NULL REFERENCES servers,
        notifier_id BLOB NOT NULL,
        notifier_key BLOB NOT NULL,
        status TEXT NOT NULL,
        error TEXT NOT NULL DEFAULT '',
        session INTEGER NOT NULL DEFAULT 0,   -- in which it was confirmed
        created_at INTEGER NOT NULL,
        UNIQUE (server, notifier_id)
    ) STRICT;
    CREATE INDEX subscriptions_token ON subscriptions (token);
    CREATE INDEX subscriptions_server ON subscriptions (server, ref) WHERE status IN ('NEW', 'PENDING', 'ACTIVE');

    CREATE TABLE notifications (              -- the newest of each queue
        subscription INTEGER PRIMARY KEY REFERENCES subscriptions ON DELETE CASCADE,
        token INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        received_at INTEGER NOT NULL,
        nonce BLOB NOT NULL,
        meta BLOB NOT NULL,
        sent INTEGER NOT NULL                 -- 1: a provider took it, or its time to live is over
    ) STRICT;
    CREATE INDEX notifications_token ON notifications (token, seq);
    CREATE INDEX notifications_unsent ON notifications (token, seq) WHERE sent = 0;
    """

# Since schema 2 these hold sealed values (sealing.py): tokens.device_token, client_dh, server_dh, secret, code;
# subscriptions.notifier_key.
SCHEMA_2: Final = (
    """CREATE TABLE keys (
        ref INTEGER PRIMARY KEY CHECK (ref = 1),
        wrapped BLOB NOT NULL,                -- the database key, under the master key
        to_scrub INTEGER NOT NULL             -- 1: what was replaced may still be in unused parts of the file
    ) STRICT""",
    "ALTER TABLE tokens ADD COLUMN device_lookup BLOB NOT NULL DEFAULT x''",  # HMAC of provider and device token
    "ALTER TABLE tokens ADD COLUMN registered_at INTEGER NOT NULL DEFAULT 0",  # of the last TNEW or TRPL
    "UPDATE tokens SET registered_at = coalesce(verification_due, created_at)",
    "DROP INDEX tokens_device",
)
SCHEMA_2_END: Final = "CREATE INDEX tokens_device ON tokens (device_lookup)"

# `session` was written for every subscription in every session; now the relay knows it without the database.
SCHEMA_3: Final = """
    DROP INDEX subscriptions_server;
    ALTER TABLE subscriptions DROP COLUMN session;
    ALTER TABLE subscriptions ADD COLUMN association INTEGER NOT NULL DEFAULT 0; -- with the server's generation: holds
    CREATE INDEX subscriptions_server ON subscriptions (server, association)
        WHERE status IN ('NEW', 'PENDING', 'ACTIVE');

    ALTER TABLE servers RENAME COLUMN session TO generation; -- of associations: a number that grows, as it was
    ALTER TABLE servers ADD COLUMN subscriptions INTEGER NOT NULL DEFAULT 0;  -- how many rows, kept by triggers
    ALTER TABLE servers ADD COLUMN certificate BLOB;                          -- PEM chain of our service
    ALTER TABLE servers ADD COLUMN certificate_key BLOB;                      -- its private key, sealed
    ALTER TABLE servers ADD COLUMN service_id BLOB;
    ALTER TABLE servers ADD COLUMN released INTEGER NOT NULL DEFAULT 0;       -- deleted here, associated there
    ALTER TABLE tokens ADD COLUMN subscriptions INTEGER NOT NULL DEFAULT 0;

    UPDATE servers SET subscriptions = (SELECT count(*) FROM subscriptions s WHERE s.server = servers.ref);
    UPDATE tokens SET subscriptions = (SELECT count(*) FROM subscriptions s WHERE s.token = tokens.ref);
    CREATE TRIGGER subscription_added AFTER INSERT ON subscriptions BEGIN
        UPDATE servers SET subscriptions = subscriptions + 1 WHERE ref = NEW.server;
        UPDATE tokens SET subscriptions = subscriptions + 1 WHERE ref = NEW.token;
    END;
    CREATE TRIGGER subscription_removed AFTER DELETE ON subscriptions BEGIN
        UPDATE servers SET subscriptions = subscriptions - 1, released = released
            + (OLD.association > 0 AND OLD.association = generation AND OLD.status IN ('NEW', 'PENDING', 'ACTIVE'))
            WHERE ref = OLD.server;
        UPDATE tokens SET subscriptions = subscriptions - 1 WHERE ref = OLD.token;
    END;
    """


# Since schema 4 tokens.secret holds what pushes are boxed with, HSalsa20 of the DH secret that it was before.

# Since schema 5 nothing is deleted by a cascade (PRAGMA foreign_keys is off): the row of a token that is deleted goes
# at once, and what it leaves behind is cleared in slices (`gone`).
SCHEMA_5: Final = (
    "ALTER TABLE tokens ADD COLUMN lane BLOB NOT NULL DEFAULT x''",  # provider code; Web Push: and hash of the origin
    "ALTER TABLE tokens ADD COLUMN app TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE tokens ADD COLUMN vapid_key BLOB NOT NULL DEFAULT x''",
    "ALTER TABLE tokens ADD COLUMN active_at INTEGER NOT NULL DEFAULT 0",  # of its last TNEW, TVFY or TRPL
    "ALTER TABLE tokens ADD COLUMN server_private BLOB",  # sealed; of registrations that keep no client key
    "ALTER TABLE tokens ADD COLUMN damaged INTEGER",  # since when it is set aside, as it cannot be read
    "ALTER TABLE subscriptions ADD COLUMN damaged INTEGER",
    "ALTER TABLE servers ADD COLUMN proven INTEGER NOT NULL DEFAULT 0",  # when it first confirmed a subscription
    "ALTER TABLE servers ADD COLUMN canonical BLOB",
    # Of the queues that our service has there, those that were released included: how many, XOR of MD5(notifier id).
    "ALTER TABLE servers ADD COLUMN assoc_count INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE servers ADD COLUMN assoc_xor BLOB NOT NULL DEFAULT x'00000000000000000000000000000000'",
    "ALTER TABLE servers ADD COLUMN released_xor BLOB NOT NULL DEFAULT x'00000000000000000000000000000000'",
    "ALTER TABLE servers ADD COLUMN unused_since INTEGER NOT NULL DEFAULT 0",  # when the last subscription went
    """CREATE TABLE deliveries (              -- one row of each token
        token INTEGER PRIMARY KEY,
        lane BLOB NOT NULL,
        due_at INTEGER,                       -- milliseconds; NULL: not due, or memory has it
        attempts INTEGER NOT NULL DEFAULT 0,  -- that failed since the last success
        push_id BLOB,                         -- of the last push; with attempts: of the next one too
        pushed_at INTEGER,
        ended TEXT,                           -- what came of it, and the provider's words
        reason TEXT,
        delivered_at INTEGER                  -- of the last push to this device token that was accepted
    ) STRICT""",
    "CREATE INDEX deliveries_due ON deliveries (lane, due_at) WHERE due_at IS NOT NULL",
    """CREATE TABLE gone (                    -- tokens that were deleted, but not yet all that was theirs
        token INTEGER PRIMARY KEY,
        subscriptions INTEGER NOT NULL        -- how many are left
    ) STRICT""",
    "DROP TRIGGER subscription_removed",
    """CREATE TRIGGER subscription_removed AFTER DELETE ON subscriptions BEGIN
        UPDATE servers SET subscriptions = subscriptions - 1 WHERE ref = OLD.server;
        UPDATE tokens SET subscriptions = subscriptions - 1 WHERE ref = OLD.token;
    END""",
    "CREATE INDEX servers_unused ON servers (ref) WHERE subscriptions = 0",
    "CREATE INDEX tokens_check ON tokens (period_at + period * 60)"
    " WHERE period > 0 AND status = 'ACTIVE' AND check_due IS NULL",
)
SCHEMA_5_DEVICES: Final = (
    "DROP INDEX tokens_device",
    "CREATE INDEX tokens_device ON tokens (device_lookup, verify_key)",
)
SCHEMA_5_END: Final = (
    "DROP INDEX tokens_device",
    "CREATE UNIQUE INDEX tokens_device ON tokens (device_lookup, verify_key)",
)


# Since schema 6 tokens.active_at is of the last command of any kind, up to a day more; 0: it is set when the file is
# opened. Servers are found by `canonical`, which is not null.
SCHEMA_6: Final = (
    "ALTER TABLE tokens ADD COLUMN proven INTEGER NOT NULL DEFAULT 0",  # 1: it was ACTIVE once
    "ALTER TABLE subscriptions ADD COLUMN spelling BLOB",  # the server's address in its SNEW, if not as servers.address
)
SCHEMA_6_END: Final = (
    "CREATE UNIQUE INDEX servers_canonical ON servers (canonical)",
    "CREATE INDEX tokens_unverified ON tokens (registered_at) WHERE proven = 0",
    "CREATE INDEX tokens_active ON tokens (active_at)",
)


# Since schema 7 servers have to prove themselves where they are.
SCHEMA_7: Final = f"""
    -- Address prefixes where subscriptions were confirmed, the newest first; '{ANYWHERE}': it is not known where.
    ALTER TABLE servers ADD COLUMN prefixes TEXT NOT NULL DEFAULT '';
    -- When it was first wanted, or lost what it had proved; 0: it is set when the file is opened.
    ALTER TABLE servers ADD COLUMN tried_since INTEGER NOT NULL DEFAULT 0;
    UPDATE servers SET prefixes = '{ANYWHERE}' WHERE proven > 0;
    """


# Since schema 8 it is known by how much the wall clock was ahead of one that nobody sets, in which run of the machine.
SCHEMA_8: Final = """
    CREATE TABLE clock (
        ref INTEGER PRIMARY KEY CHECK (ref = 1),
        boot TEXT NOT NULL,                   -- names that run
        ahead REAL NOT NULL                   -- seconds
    ) STRICT;
    """


# Since schema 9 what was counted on which day is kept.
SCHEMA_9: Final = """
    CREATE TABLE statistics (
        row TEXT PRIMARY KEY,                 -- a day, and whose row it is (store/statistics.py)
        counts TEXT NOT NULL                  -- numbers by name, as JSON
    ) STRICT, WITHOUT ROWID;
    """


def migrations(master: MasterKey) -> tuple[Migration, ...]:
    """All of them; a new database key is wrapped by `master`."""

    def seal(c: sqlite3.Connection, progress: Progress) -> None:
        for statement in SCHEMA_2:
            c.execute(statement)
        add_keys(c, master, progress)
        c.execute(SCHEMA_2_END)

    def deliver(c: sqlite3.Connection, progress: Progress) -> None:
        for statement in SCHEMA_5:
            c.execute(statement)
        add_lanes(c, master, progress)
        for statement in SCHEMA_5_DEVICES:
            c.execute(statement)
        merge_twins(c, progress)
        for statement in SCHEMA_5_END:
            c.execute(statement)
        count_associations(c, progress)

    def canonical(c: sqlite3.Connection, progress: Progress) -> None:
        for statement in SCHEMA_6:
            c.execute(statement)
        merge_servers(c, progress)
        remember(c)
        for statement in SCHEMA_6_END:
            c.execute(statement)

    later = SCHEMA_7, SCHEMA_8, SCHEMA_9
    return SCHEMA_1, seal, SCHEMA_3, partial(add_box_keys, master), deliver, canonical, *later
