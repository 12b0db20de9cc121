#!lua flags=allow-oom
-- What a failover lost may have been that another node speaks for the server: then the last ENDs only tell that it did so,
-- and their queues are wanted anew. KEYS: buckets. ARGV: offset ms, status of what had an END, how many before these, how
-- many.
-- Gives of each bucket how many were looked at, then the ids of those that are wanted, and not yet subscribed.
local since, out = '(' .. text(now_ms(ARGV[1]) - ENDS_MS), {}
for n, bucket in ipairs(KEYS) do
    local marks = call('ZRANGEBYSCORE', bucket .. ':ends', since, '+inf', 'LIMIT', ARGV[3], ARGV[4])
    out[n] = {#marks}
    for _, mark in ipairs(marks) do
        local id = mark:sub(ENDS_SIZE + 1)
        local record = call('HGET', bucket .. ':q', id)
        local status, damaged, _, number, created, rest = unpack_head(record or '')
        if record and damaged == 0 and status == tonumber(ARGV[2]) then
            want(bucket, 0, number, id)
            call('HSET', bucket .. ':q', id, struct.pack(HEAD, 0, damaged, 0, number, created) .. rest)
            status = 0
        end
        if record and damaged == 0 and status == 0 then out[n][#out[n] + 1] = id end
    end
end
return out
