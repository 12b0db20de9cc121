-- Who fills it, from now on or still: as long as that one lives no other does. KEYS: the store's hash. ARGV: field of the
-- mark, who asks, ms for which it then counts as living (0: no longer).
-- Gives '' if that is done or there is no mark, or until when another one lives, in ms.
if call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return '' end
local f = call('HMGET', KEYS[1], 'filler', 'filler_until')
local now = now_ms('0')
if f[1] and f[1] ~= ARGV[2] and tonumber(f[2]) > now then return f[2] end
call('HSET', KEYS[1], 'filler', ARGV[2], 'filler_until', text(now + tonumber(ARGV[3])))
return ''
