#!lua flags=allow-oom
-- What was prepared of tokens by commands that were cut off comes no more. KEYS: shard. ARGV: offset ms, fence, seconds
-- after which a command is over, how many. Gives id, attempt and record of each.
local shard, out = KEYS[1], {}
local refused = holds(shard, ARGV[2])
if refused then return refused end
local latest = text(now_ms(ARGV[1]) - tonumber(ARGV[3]) * 1000)
for _, id in ipairs(call('ZRANGEBYSCORE', shard .. ':coming', '-inf', latest, 'LIMIT', 0, ARGV[4])) do
    local new = call('HMGET', shard .. ':n:' .. id, 'a', 'r')
    if new[1] then out[#out + 1] = {id, new[1], new[2]} end
    call('DEL', shard .. ':n:' .. id)
    call('ZREM', shard .. ':coming', id)
end
return out
