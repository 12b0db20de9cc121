-- Records of queues, for who speaks for the server, or did last. KEYS: server. ARGV: offset ms, node, ids.
-- Gives the server's address, then the records.
local server = KEYS[1]
local s = call('HMGET', server, 'node', 'until', 'address')
local out = {s[3]}
if s[1] and s[1] ~= '' and s[1] ~= ARGV[2] and tonumber(s[2]) > now_ms(ARGV[1]) then
    return redis.error_reply('FENCED another node speaks for this server')
end
for i = 3, #ARGV do
    out[#out + 1] = call('HGET', server .. ':q', ARGV[i])
end
return out
