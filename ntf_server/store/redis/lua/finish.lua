#!lua flags=allow-oom
-- END and DELD. KEYS: buckets. ARGV: offset ms, node, fence, status, which ends these are (ENDS_SIZE bytes), then of each
-- bucket how many; of each: id, MD5 of it.
-- Gives for each whether it is here.
-- What was ended so stands in :ends: these may be done again, and end nothing that was subscribed anew meanwhile.
local now, a, out = now_ms(ARGV[1]), 6, {}
for _, bucket in ipairs(KEYS) do
    local refused = speaks_in(bucket, ARGV[2], ARGV[3])
    if refused then return refused end
    forget_ends(bucket, now)
    local last, ends = a + 2 * tonumber(ARGV[a]), bucket .. ':ends'
    local room = call('ZCARD', ends) < ENDS
    for i = a + 1, last, 2 do
        local id = ARGV[i]
        local mark, record = ARGV[5] .. id, call('HGET', bucket .. ':q', id)
        if record and not call('ZSCORE', ends, mark) then
            local status, damaged, generation, number, created, rest = unpack_head(record)
            if status <= WANTED and generation > 0 then account(bucket, 'assoc', generation, -1, ARGV[i + 1]) end
            unwant(bucket, generation, id)
            call('HSET', bucket .. ':q', id, struct.pack(HEAD, tonumber(ARGV[4]), damaged, 0, number, created) .. rest)
            if status <= WANTED and room then call('ZADD', ends, text(now), mark) end
        end
        out[#out + 1] = record and 1 or 0
    end
    a = last + 1
end
return out
