-- Nobody was silent while there was nobody to hear. KEYS: shard. ARGV: seconds, who starts, how many calls of it came
-- before, id behind which to go on or '', how many.
-- Gives the id of the last one, or '' at the end. Twice it is done once, and what is done late, behind later calls, not at
-- all: which call was the last one, and what it gave, stands in the shard.
local shard, who, number, after = KEYS[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local heard = call('HMGET', shard, 'heard_by', 'heard', 'heard_last')
if heard[1] == who and tonumber(heard[2]) >= number then return heard[3] end
local ids = ids_behind(shard, after, ARGV[5])
for _, id in ipairs(ids) do
    call('HINCRBY', shard .. ':t:' .. id, 'aa', ARGV[1])
    index(shard, id)
end
local last = #ids == tonumber(ARGV[5]) and ids[#ids] or ''
call('HSET', shard, 'heard_by', who, 'heard', number, 'heard_last', last)
return last
