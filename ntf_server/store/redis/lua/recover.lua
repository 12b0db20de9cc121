#!lua flags=allow-oom
-- What the last holder's memory had is due. KEYS: shard. ARGV: offset ms, fence, limit, number of a call: of
-- what was handed out by later ones nothing; then ids that memory has.
-- Gives how many are left, then lanes that have more.
local shard, now, known, out = KEYS[1], now_ms(ARGV[1]), {}, {0}
local refused = holds(shard, ARGV[2])
if refused then return refused end
for i = 5, #ARGV do known[ARGV[i]] = true end
local done, limit, settled = 0, tonumber(ARGV[3]), tonumber(ARGV[4])
local taken = call('HGETALL', shard .. ':taken')
for i = 1, #taken, 2 do
    local id = taken[i]
    if not known[id] and tonumber(taken[i + 1]) <= settled then
        if done == limit then
            out[1] = out[1] + 1
        else
            done = done + 1
            call('HDEL', shard .. ':taken', id)
            local lane, at = call('HGET', shard .. ':t:' .. id, 'l'), pending(shard, id, now)
            if lane and at then
                due(shard, id, lane, at)
                out[#out + 1] = lane
            end
        end
    end
end
return out
