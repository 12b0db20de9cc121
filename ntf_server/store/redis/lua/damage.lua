#!lua flags=allow-oom
-- Subscriptions that cannot be read. KEYS: buckets. ARGV: of each bucket how many; ids. Gives how many were not set aside
-- before.
local a, count = 1, 0
for _, bucket in ipairs(KEYS) do
    local generations, last = call('ZRANGE', bucket .. ':g', 0, -1), a + tonumber(ARGV[a])
    for i = a + 1, last do
        local id = ARGV[i]
        local record = call('HGET', bucket .. ':q', id)
        if record then
            local status, damaged, generation, number, created, rest = unpack_head(record)
            for _, g in ipairs(generations) do unwant(bucket, g, id) end -- in which one it is need not be known
            if damaged == 0 or #record < HEAD_SIZE then
                count = count + 1
                call('HSET', bucket .. ':q', id, struct.pack(HEAD, status, 1, generation, number, created) .. rest)
            end
        end
    end
    a = last + 1
end
return count
