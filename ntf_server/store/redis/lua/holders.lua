-- Whether a server is held. KEYS: server. ARGV: offset ms, ms that a lease lasts.
-- Gives '' if it is, 'old' if its holder renews it no more, 'new' if nobody ever held it, 'free', or 'late': it is free for
-- longer than a lease.
local server, now = KEYS[1], now_ms(ARGV[1])
local s = call('HMGET', server, 'node', 'until')
local is_held = s[1] and s[1] ~= '' and tonumber(s[2]) > now
if is_held then return tonumber(s[2]) - now >= tonumber(ARGV[2]) / 2 and '' or 'old' end
if not s[2] then return 'new' end
return tonumber(s[2]) + tonumber(ARGV[2]) <= now and 'late' or 'free'
