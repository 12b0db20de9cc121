-- Whether a server is to be held, and is not. KEYS: server. ARGV: offset ms, ms that a lease lasts.
-- Gives '' if it is held or nothing there should be active, 'old' if its holder renews it no more, 'new' if nobody ever
-- held it, 'free', or 'late': it is free for longer than a lease.
local server, now = KEYS[1], now_ms(ARGV[1])
local s = call('HMGET', server, 'node', 'until')
local is_held = s[1] and s[1] ~= '' and tonumber(s[2]) > now
if is_held and tonumber(s[2]) - now >= tonumber(ARGV[2]) / 2 or not is_wanted(server) then return '' end
if is_held then return 'old' end
if not s[2] then return 'new' end
return tonumber(s[2]) + tonumber(ARGV[2]) <= now and 'late' or 'free'
