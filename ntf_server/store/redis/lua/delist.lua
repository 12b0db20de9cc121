#!lua flags=allow-oom
-- Buckets of a server are gone. KEYS: server. ARGV: bucket and its time then of each: one that a queue was to come into
-- since then stays.
local buckets = KEYS[1] .. ':b'
for i = 1, #ARGV, 2 do
    if call('ZSCORE', buckets, ARGV[i]) == ARGV[i + 1] then call('ZREM', buckets, ARGV[i]) end
end
return 0
