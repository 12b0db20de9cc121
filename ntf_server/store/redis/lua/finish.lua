#!lua flags=allow-oom
-- END and DELD. KEYS: server. ARGV: offset ms, node, fence, status, then of each: id, MD5 of it.
-- Gives how many there are here.
local server = KEYS[1]
local refused = speaks(server, ARGV[2], ARGV[3])
if refused then return refused end
local known, counts = 0, tonumber(call('HGET', server, 'generation') or 0)
for i = 5, #ARGV, 2 do
    local id = ARGV[i]
    local record = call('HGET', server .. ':q', id)
    if record then
        known = known + 1
        local status, damaged, generation, number, created, rest = unpack_head(record)
        if status <= WANTED and generation > 0 and generation == counts then
            account(server, 'assoc_n', 'assoc_x', -1, ARGV[i + 1])
        end
        unwant(server, generation, id)
        call('HSET', server .. ':q', id, struct.pack(HEAD, tonumber(ARGV[4]), damaged, 0, number, created) .. rest)
    elseif tonumber(call('HGET', server, 'rel_n') or 0) > 0 then -- the server counts it no more either
        account(server, 'rel_n', 'rel_x', -1, ARGV[i + 1])
        account(server, 'assoc_n', 'assoc_x', -1, ARGV[i + 1])
    end
end
return known
