#!lua flags=allow-oom
-- What the last holder's memory had is due. KEYS: shard. ARGV: offset ms, fence, limit, number of a call: of
-- what was handed out by later ones nothing; then ids that memory has, and by which call: that is made so where what was
-- written last is lost; '': by any.
-- Gives how many are left, then lanes that have more.
local shard, now, known, out = KEYS[1], now_ms(ARGV[1]), {}, {0}
local refused = holds(shard, ARGV[2])
if refused then return refused end
for i = 5, #ARGV, 2 do known[ARGV[i]] = ARGV[i + 1] end
local done, limit, settled = 0, tonumber(ARGV[3]), tonumber(ARGV[4])
local taken = call('HGETALL', shard .. ':taken')
for i = 1, #taken, 2 do
    local id = taken[i]
    local mark = known[id]
    if tonumber(taken[i + 1]) <= settled and mark ~= '' and mark ~= taken[i + 1] then
        if mark then
            set_mark(shard, id, tonumber(mark))
            call('HSET', shard .. ':taken', id, mark)
        elseif done == limit then
            out[1] = out[1] + 1
        else
            done = done + 1
            local lane, at = call('HGET', shard .. ':t:' .. id, 'l'), pending(shard, id, now)
            if lane and at then
                due(shard, id, lane, at)
                out[#out + 1] = lane
            end
            let_go(shard, id)
        end
    end
end
return out
