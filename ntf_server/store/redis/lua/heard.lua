-- In how many queues something came of late, of `limit` tokens of a shard behind an id. KEYS: shard. ARGV: offset ms, id or
-- '', limit, then spans (s). Gives how many tokens that were, the id of the last one, then of each span how many queues.
local shard, after, out = KEYS[1], ARGV[2], {}
local now = math.floor(now_ms(ARGV[1]) / 1000)
local ids = ids_behind(shard, after, ARGV[3])
for i = 4, #ARGV do out[i - 1] = 0 end
for _, id in ipairs(ids) do
    local queues = call('SMEMBERS', shard .. ':q:' .. id)
    for from = 1, #queues, 1000 do
        local last = math.min(from + 999, #queues)
        for _, value in ipairs(call('HMGET', shard .. ':t:' .. id, unpack(queues, from, last))) do
            local _, _, received = stamp(value)
            for i = 4, #ARGV do
                if now - received < tonumber(ARGV[i]) then out[i - 1] = out[i - 1] + 1 end
            end
        end
    end
end
out[1], out[2] = #ids, ids[#ids] or ''
return out
