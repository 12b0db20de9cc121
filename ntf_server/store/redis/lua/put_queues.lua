-- Queues that come from another store. KEYS: buckets. ARGV: of each bucket: the server's address, how many; of each: id,
-- record, error or ''.
local a = 1
for _, bucket in ipairs(KEYS) do
    local last, highest = a + 1 + 3 * tonumber(ARGV[a + 1]), tonumber(call('HGET', bucket, 'number') or 0)
    for i = a + 2, last, 3 do
        local id, record = ARGV[i], ARGV[i + 1]
        local status, _, generation, number = unpack_head(record)
        if status <= WANTED then want(bucket, generation, number, id) end
        if ARGV[i + 2] ~= '' then call('HSET', bucket .. ':e', id, ARGV[i + 2]) end
        call('HSET', bucket .. ':q', id, record)
        highest = math.max(highest, number)
    end
    call('HSET', bucket, 'address', ARGV[a], 'node', '', 'fence', 0, 'number', text(highest))
    a = last + 1
end
return 0
