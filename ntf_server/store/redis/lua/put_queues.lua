-- Queues of a server that come from another store. KEYS: server. ARGV: of each: id, record, error or ''.
local server = KEYS[1]
local highest = tonumber(call('HGET', server, 'number') or 0)
for i = 1, #ARGV, 3 do
    local id, record = ARGV[i], ARGV[i + 1]
    local status, _, generation, number = unpack_head(record)
    if status <= WANTED then want(server, generation, number, id) end
    if ARGV[i + 2] ~= '' then call('HSET', server .. ':e', id, ARGV[i + 2]) end
    call('HSET', server .. ':q', id, record)
    highest = math.max(highest, number)
end
call('HSET', server, 'number', text(highest))
return 0
