#!lua flags=allow-oom
-- Speak for a server no more. KEYS: it. ARGV: offset ms, node, fence. 1: it did.
local server = KEYS[1]
local s = call('HMGET', server, 'node', 'fence')
if s[2] == ARGV[3] and (s[1] == ARGV[2] or s[1] == '') then
    call('HSET', server, 'node', '', 'until', text(now_ms(ARGV[1])))
    return 1
end
return 0
