-- A store that nobody uses is to be filled from another one: no node starts on it from now on. It is made if it is not
-- there. KEYS: its hash, nodes, servers, the store's clock. ARGV: field of the mark, the mark, who asks, ms for which it
-- then counts as living, fields and values of a new one.
-- Gives '' if that is done, 'used' if a node lives, 'full' if it has servers, 'filled' if it has another's mark already.
local now = now_ms(call('HGET', KEYS[4], 'offset') or '0')
if call('ZCOUNT', KEYS[2], text(now), '+inf') > 0 then return 'used' end
local f = call('HMGET', KEYS[1], ARGV[1], 'filler')
if f[1] then return f[2] == ARGV[3] and '' or 'filled' end
if call('HLEN', KEYS[3]) > 0 then return 'full' end
if call('EXISTS', KEYS[1]) == 0 then call('HSET', KEYS[1], unpack(ARGV, 5)) end
call('HSET', KEYS[1], ARGV[1], ARGV[2], 'filler', ARGV[3], 'filler_until', text(now_ms('0') + tonumber(ARGV[4])))
return ''
