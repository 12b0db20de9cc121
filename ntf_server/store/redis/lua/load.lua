-- Records of queues. KEYS: buckets. ARGV: node, fence, then of each bucket how many; ids.
local a, out = 3, {}
for _, bucket in ipairs(KEYS) do
    local refused = speaks_in(bucket, ARGV[1], ARGV[2])
    if refused then return refused end
    local last = a + tonumber(ARGV[a])
    read(bucket, a + 1, last, out)
    a = last + 1
end
return out
