#!lua flags=allow-oom
-- Keep sessions. KEYS: servers. ARGV: offset ms, node, ms that a lease lasts, then of each server the fence.
-- Gives for each 1, or 0: it is lost.
-- It uses no other keys.
local until_ms, out = text(now_ms(ARGV[1]) + tonumber(ARGV[3])), {}
for i, server in ipairs(KEYS) do
    local s = call('HMGET', server, 'node', 'fence')
    out[i] = s[1] == ARGV[2] and s[2] == ARGV[3 + i] and 1 or 0
    if out[i] == 1 then call('HSET', server, 'until', until_ms) end
end
return out
