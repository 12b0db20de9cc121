#!lua flags=allow-oom
-- Forget a server that nobody needs. KEYS: it. ARGV: offset ms, seconds for which a proven one is kept. 1: it is gone.
local server, now = KEYS[1], now_ms(ARGV[1])
local s = call('HMGET', server, 'address', 'proven', 'unused', 'node', 'until')
if call('EXISTS', server .. ':q') == 1 then return 0 end
if s[4] and s[4] ~= '' and tonumber(s[5]) > now then return 0 end
if s[2] and tonumber(s[3]) > math.floor(now / 1000) - tonumber(ARGV[2]) then return 0 end
call('DEL', server, server .. ':q', server .. ':e', server .. ':g')
return 1
