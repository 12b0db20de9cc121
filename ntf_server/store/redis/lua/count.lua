-- How many tokens of a provider are due. KEYS: shards. ARGV: provider.
local total = 0
for _, shard in ipairs(KEYS) do
    for _, lane in ipairs(call('ZRANGE', shard .. ':lanes:' .. ARGV[1], 0, -1)) do
        total = total + call('ZCARD', shard .. ':due:' .. lane)
    end
end
return total
