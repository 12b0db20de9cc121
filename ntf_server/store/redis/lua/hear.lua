-- Nobody was silent while there was nobody to hear. KEYS: shard. ARGV: seconds, id behind which to go on or '', how many.
-- Gives the id of the last one, or '' at the end.
local shard, after = KEYS[1], ARGV[2]
local ids = call('ZRANGEBYLEX', shard .. ':all', after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, ARGV[3])
for _, id in ipairs(ids) do
    call('HINCRBY', shard .. ':t:' .. id, 'aa', ARGV[1])
    index(shard, id)
end
return #ids == tonumber(ARGV[3]) and ids[#ids] or ''
