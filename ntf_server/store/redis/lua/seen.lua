-- Tokens sent a command. KEYS: shard. ARGV: offset ms, ids.
local shard, seconds = KEYS[1], text(math.floor(now_ms(ARGV[1]) / 1000))
for i = 2, #ARGV do
    local key = shard .. ':t:' .. ARGV[i]
    if call('EXISTS', key) == 1 then
        call('HSET', key, 'aa', seconds)
        index(shard, ARGV[i])
    end
end
return 0
