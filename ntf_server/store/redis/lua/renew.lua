#!lua flags=allow-oom
-- Keep a session. KEYS: server. ARGV: offset ms, node, ms that a lease lasts, fence. 0: it is lost.
-- It uses no other keys.
local server = KEYS[1]
local s = call('HMGET', server, 'node', 'fence')
if s[1] ~= ARGV[2] or s[2] ~= ARGV[4] then return 0 end
call('HSET', server, 'until', text(now_ms(ARGV[1]) + tonumber(ARGV[3])))
return 1
