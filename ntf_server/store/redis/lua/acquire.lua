-- Speak for a server. KEYS: it. ARGV: offset ms, node, ms that a lease lasts, its address, the fence that it has at least.
-- Gives the fence, then its buckets; nothing if another node speaks for it.
local server, now = KEYS[1], now_ms(ARGV[1])
local s = call('HMGET', server, 'node', 'fence', 'until', 'address')
if s[1] and s[1] ~= '' and s[1] ~= ARGV[2] and tonumber(s[3]) > now then return false end
local t = call('TIME')
local fence = text(math.max(tonumber(s[2] or 0) + 1, tonumber(t[1]) * 1000000 + tonumber(t[2]), tonumber(ARGV[5])))
call('HSET', server, 'node', ARGV[2], 'fence', fence, 'until', text(now + tonumber(ARGV[3])))
if not s[4] then
    local seconds = text(math.floor(now / 1000))
    call('HSET', server, 'address', ARGV[4], 'tried', seconds, 'unused', seconds)
end
return {fence, unpack(call('ZRANGE', server .. ':b', 0, -1))}
