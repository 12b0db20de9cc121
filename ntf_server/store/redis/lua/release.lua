-- Speak for a server no more. KEYS: it. ARGV: offset ms, node, fence.
local server = KEYS[1]
local s = call('HMGET', server, 'node', 'fence')
if s[1] == ARGV[2] and s[2] == ARGV[3] then call('HSET', server, 'node', '', 'until', text(now_ms(ARGV[1]))) end
return 0
