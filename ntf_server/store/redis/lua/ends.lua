-- Records of the first and the last queues that should be active. KEYS: buckets. ARGV: how many in each.
local out, limit = {}, tonumber(ARGV[1])
for _, bucket in ipairs(KEYS) do
    for _, item in ipairs(slice(bucket, 0, -1, '+inf', limit)) do out[#out + 1] = item[3] end
    local left = limit
    for _, g in ipairs(call('ZREVRANGE', bucket .. ':g', 0, -1)) do
        if left <= 0 then break end
        for _, id in ipairs(call('ZREVRANGE', bucket .. ':w:' .. g, 0, left - 1)) do
            local record = call('HGET', bucket .. ':q', id)
            if record then out[#out + 1] = record end
            left = left - 1
        end
    end
end
return out
