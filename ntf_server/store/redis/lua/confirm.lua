-- Answers to NSUBs. KEYS: server. ARGV: offset ms, node, fence, generation of the session's service or '0', then of each:
-- id, status, error, '1' the service has it, '0' it has not, '' that did not change, MD5 of the id.
local server = KEYS[1]
local refused = speaks(server, ARGV[2], ARGV[3])
if refused then return refused end
local session = tonumber(ARGV[4])
for i = 5, #ARGV, 5 do
    local id, new = ARGV[i], tonumber(ARGV[i + 1])
    local record = call('HGET', server .. ':q', id)
    if record and #record >= HEAD_SIZE then -- one that is cut stays until it is set aside
        local status, damaged, generation, number, created, rest = unpack_head(record)
        if status <= WANTED then -- an END that came with the answers must not be undone
            local is = generation
            if session > 0 then
                local before = generation == session
                local has = before
                if ARGV[i + 3] ~= '' then has = ARGV[i + 3] == '1' end
                has = has and new <= WANTED
                if has ~= before then account(server, 'assoc_n', 'assoc_x', has and 1 or -1, ARGV[i + 4]) end
                is = has and session or ((before or new > WANTED) and 0 or generation)
            end
            if is ~= generation or new > WANTED then unwant(server, generation, id) end
            if new <= WANTED and damaged == 0 then want(server, is, number, id) end
            call('HSET', server .. ':q', id, struct.pack(HEAD, new, damaged, is, number, created) .. rest)
            if ARGV[i + 2] ~= '' then
                call('HSET', server .. ':e', id, ARGV[i + 2])
            else
                call('HDEL', server .. ':e', id)
            end
        end
    end
end
return 0
