#!lua flags=allow-oom
-- Subscriptions that cannot be read. KEYS: server. ARGV: ids. Gives how many were not set aside before.
local server, count = KEYS[1], 0
local generations = call('ZRANGE', server .. ':g', 0, -1)
for _, id in ipairs(ARGV) do
    local record = call('HGET', server .. ':q', id)
    if record then
        local status, damaged, generation, number, created, rest = unpack_head(record)
        for _, g in ipairs(generations) do unwant(server, g, id) end -- in which one it is need not be known
        if damaged == 0 or #record < HEAD_SIZE then
            count = count + 1
            call('HSET', server .. ':q', id, struct.pack(HEAD, status, 1, generation, number, created) .. rest)
        end
    end
end
return count
