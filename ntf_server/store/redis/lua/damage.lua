#!lua flags=allow-oom
-- Subscriptions that cannot be read. KEYS: server. ARGV: ids. Gives how many were not set aside before.
local server, count = KEYS[1], 0
for _, id in ipairs(ARGV) do
    local record = call('HGET', server .. ':q', id)
    if record then
        local status, damaged, generation, number, created, rest = unpack_head(record)
        if damaged == 0 then
            count = count + 1
            unwant(server, generation, id)
            call('HSET', server .. ':q', id, struct.pack(HEAD, status, 1, generation, number, created) .. rest)
        end
    end
end
return count
