-- Answers to NSUBs. KEYS: buckets. ARGV: node, fence, generation of the session's service or '0', then of each bucket how
-- many; of each: id, status, error, '1' the service has it, '0' it has not, '' that did not change, MD5 of the id.
local session, a = tonumber(ARGV[3]), 4
for _, bucket in ipairs(KEYS) do
    local refused = speaks_in(bucket, ARGV[1], ARGV[2])
    if refused then return refused end
    local last = a + 5 * tonumber(ARGV[a])
    for i = a + 1, last, 5 do
        local id, new = ARGV[i], tonumber(ARGV[i + 1])
        local record = call('HGET', bucket .. ':q', id)
        if record and #record >= HEAD_SIZE then -- one that is cut stays until it is set aside
            local status, damaged, generation, number, created, rest = unpack_head(record)
            if status <= WANTED then -- an END that came with the answers must not be undone
                local is = generation
                if session > 0 then
                    local before = generation == session
                    local has = before
                    if ARGV[i + 3] ~= '' then has = ARGV[i + 3] == '1' end
                    has = has and new <= WANTED
                    if has ~= before then account(bucket, 'assoc', session, has and 1 or -1, ARGV[i + 4]) end
                    is = has and session or ((before or new > WANTED) and 0 or generation)
                end
                if is ~= generation or new > WANTED then unwant(bucket, generation, id) end
                if new <= WANTED and damaged == 0 then want(bucket, is, number, id) end
                call('HSET', bucket .. ':q', id, struct.pack(HEAD, new, damaged, is, number, created) .. rest)
                if ARGV[i + 2] ~= '' then
                    call('HSET', bucket .. ':e', id, ARGV[i + 2])
                else
                    call('HDEL', bucket .. ':e', id)
                end
            end
        end
    end
    a = last + 1
end
return 0
