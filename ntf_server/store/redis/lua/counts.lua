-- What buckets count of a service. KEYS: buckets. ARGV: node, fence, generation of associations, since which one the
-- service is this one. Gives how many it has, their hash, how many were released, and theirs.
local out = {0, NO_IDS, 0, NO_IDS}
for _, bucket in ipairs(KEYS) do
    local refused = speaks_in(bucket, ARGV[1], ARGV[2])
    if refused then return refused end
    local c = call('HMGET', bucket, 'assoc_g', 'assoc_n', 'assoc_x', 'rel_g', 'rel_n', 'rel_x')
    if c[1] == ARGV[3] then out[1], out[2] = out[1] + tonumber(c[2]), xor(out[2], c[3]) end
    if c[4] == ARGV[4] then out[3], out[4] = out[3] + tonumber(c[5]), xor(out[4], c[6]) end
end
return out
