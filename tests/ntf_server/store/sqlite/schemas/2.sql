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
    , device_lookup BLOB NOT NULL DEFAULT x'', registered_at INTEGER NOT NULL DEFAULT 0) STRICT;
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
CREATE TABLE keys (
        ref INTEGER PRIMARY KEY CHECK (ref = 1),
        wrapped BLOB NOT NULL,                -- the database key, under the master key
        to_scrub INTEGER NOT NULL             -- 1: what was replaced may still be in unused parts of the file
    ) STRICT;
CREATE INDEX tokens_device ON tokens (device_lookup);
