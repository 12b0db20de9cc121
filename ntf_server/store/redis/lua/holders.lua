-- Whether a server is to be held, and is not. KEYS: server. ARGV: offset ms, ms that a lease lasts.
-- Gives '' if it is held or nothing there should be active, 'free', or 'late': it is free for longer than a lease.
local server, now = KEYS[1], now_ms(ARGV[1])
local s = call('HMGET', server, 'node', 'until')
if s[1] and s[1] ~= '' and tonumber(s[2]) > now then return '' end
if not is_wanted(server) then return '' end
return s[2] and tonumber(s[2]) + tonumber(ARGV[2]) <= now and 'late' or 'free'
