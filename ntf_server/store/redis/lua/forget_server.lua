#!lua flags=allow-oom
-- Forget a server that nobody needs. KEYS: it. ARGV: offset ms, seconds for which a proven one is kept, by when the last
-- queue may have come into a bucket, ms: later ones may have some. 1: it is gone.
local server, now = KEYS[1], now_ms(ARGV[1])
local s = call('HMGET', server, 'proven', 'unused', 'node', 'until')
if call('ZCOUNT', server .. ':b', '(' .. ARGV[3], '+inf') > 0 then return 0 end
if s[3] and s[3] ~= '' and tonumber(s[4]) > now then return 0 end
if s[1] and (not s[2] or tonumber(s[2]) > math.floor(now / 1000) - tonumber(ARGV[2])) then return 0 end
call('DEL', server .. ':b', server)
return 1
