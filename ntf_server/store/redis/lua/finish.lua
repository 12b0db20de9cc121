#!lua flags=allow-oom
-- END and DELD. KEYS: buckets. ARGV: node, fence, status, then of each bucket how many; of each: id, MD5 of it.
-- Gives for each whether it is here.
local a, out = 4, {}
for _, bucket in ipairs(KEYS) do
    local refused = speaks_in(bucket, ARGV[1], ARGV[2])
    if refused then return refused end
    local last = a + 2 * tonumber(ARGV[a])
    for i = a + 1, last, 2 do
        local id = ARGV[i]
        local record = call('HGET', bucket .. ':q', id)
        if record then
            local status, damaged, generation, number, created, rest = unpack_head(record)
            if status <= WANTED and generation > 0 then account(bucket, 'assoc', generation, -1, ARGV[i + 1]) end
            unwant(bucket, generation, id)
            call('HSET', bucket .. ':q', id, struct.pack(HEAD, tonumber(ARGV[3]), damaged, 0, number, created) .. rest)
        end
        out[#out + 1] = record and 1 or 0
    end
    a = last + 1
end
return out
