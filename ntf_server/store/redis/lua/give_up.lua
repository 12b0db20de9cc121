-- KEYS: buckets. ARGV: node, fence, status, error, how many. Gives how many were given up.
local done, limit = 0, tonumber(ARGV[5])
for _, bucket in ipairs(KEYS) do
    local refused = speaks_in(bucket, ARGV[1], ARGV[2])
    if refused then return refused end
    if done == limit then break end
    for _, item in ipairs(slice(bucket, 0, -1, '+inf', limit - done)) do
        local _, damaged, generation, number, created, rest = unpack_head(item[3])
        unwant(bucket, generation, item[2])
        call('HSET', bucket .. ':q', item[2], struct.pack(HEAD, tonumber(ARGV[3]), damaged, 0, number, created) .. rest)
        call('HSET', bucket .. ':e', item[2], ARGV[4])
        done = done + 1
    end
end
return done
