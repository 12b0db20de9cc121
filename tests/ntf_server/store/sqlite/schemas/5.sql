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
    , device_lookup BLOB NOT NULL DEFAULT x'', registered_at INTEGER NOT NULL DEFAULT 0, subscriptions INTEGER NOT NULL DEFAULT 0, lane BLOB NOT NULL DEFAULT x'', app TEXT NOT NULL DEFAULT '', vapid_key BLOB NOT NULL DEFAULT x'', active_at INTEGER NOT NULL DEFAULT 0, server_private BLOB, damaged INTEGER) STRICT;
CREATE INDEX tokens_due ON tokens (ref) WHERE verification_due IS NOT NULL OR check_due IS NOT NULL;
CREATE INDEX tokens_period ON tokens (period_at) WHERE period > 0;
CREATE TABLE servers (
        ref INTEGER PRIMARY KEY,
        address BLOB NOT NULL UNIQUE,         -- binary form of wire.md, section 1
        generation INTEGER NOT NULL DEFAULT 0    -- number of the newest session
    , subscriptions INTEGER NOT NULL DEFAULT 0, certificate BLOB, certificate_key BLOB, service_id BLOB, released INTEGER NOT NULL DEFAULT 0, proven INTEGER NOT NULL DEFAULT 0, canonical BLOB, assoc_count INTEGER NOT NULL DEFAULT 0, assoc_xor BLOB NOT NULL DEFAULT x'00000000000000000000000000000000', released_xor BLOB NOT NULL DEFAULT x'00000000000000000000000000000000', unused_since INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE subscriptions (
        ref INTEGER PRIMARY KEY AUTOINCREMENT,
        subscription_id BLOB NOT NULL UNIQUE,
        token INTEGER NOT NULL REFERENCES tokens ON DELETE CASCADE,
        server INTEGER NOT NULL REFERENCES servers,
        notifier_id BLOB NOT NULL,
        notifier_key BLOB NOT NULL,
        status TEXT NOT NULL,
        error TEXT NOT NULL DEFAULT '',
        created_at INTEGER NOT NULL, association INTEGER NOT NULL DEFAULT 0, damaged INTEGER,
        UNIQUE (server, notifier_id)
    ) STRICT;
CREATE INDEX subscriptions_token ON subscriptions (token);
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
CREATE INDEX subscriptions_server ON subscriptions (server, association)
        WHERE status IN ('NEW', 'PENDING', 'ACTIVE');
CREATE TRIGGER subscription_added AFTER INSERT ON subscriptions BEGIN
        UPDATE servers SET subscriptions = subscriptions + 1 WHERE ref = NEW.server;
        UPDATE tokens SET subscriptions = subscriptions + 1 WHERE ref = NEW.token;
    END;
CREATE TABLE deliveries (              -- one row of each token
        token INTEGER PRIMARY KEY,
        lane BLOB NOT NULL,
        due_at INTEGER,                       -- milliseconds; NULL: not due, or memory has it
        attempts INTEGER NOT NULL DEFAULT 0,  -- that failed since the last success
        push_id BLOB,                         -- of the last push; with attempts: of the next one too
        pushed_at INTEGER,
        ended TEXT,                           -- what came of it, and the provider's words
        reason TEXT,
        delivered_at INTEGER                  -- of the last push to this device token that was accepted
    ) STRICT;
CREATE INDEX deliveries_due ON deliveries (lane, due_at) WHERE due_at IS NOT NULL;
CREATE TABLE gone (                    -- tokens that were deleted, but not yet all that was theirs
        token INTEGER PRIMARY KEY,
        subscriptions INTEGER NOT NULL        -- how many are left
    ) STRICT;
CREATE TRIGGER subscription_removed AFTER DELETE ON subscriptions BEGIN
        UPDATE servers SET subscriptions = subscriptions - 1 WHERE ref = OLD.server;
        UPDATE tokens SET subscriptions = subscriptions - 1 WHERE ref = OLD.token;
    END;
CREATE INDEX servers_unused ON servers (ref) WHERE subscriptions = 0;
CREATE INDEX tokens_check ON tokens (period_at + period * 60) WHERE period > 0 AND status = 'ACTIVE' AND check_due IS NULL;
CREATE UNIQUE INDEX tokens_device ON tokens (device_lookup, verify_key);
