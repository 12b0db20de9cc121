#!lua flags=no-writes
-- KEYS: a memo. ARGV: offset ms. Gives the time, ms, and the memo, nothing if there is none.
-- It uses no other keys.
return {now_ms(ARGV[1]), call('GET', KEYS[1])}
