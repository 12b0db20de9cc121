-- A session begins: in buckets of its server no older one is believed from now on. KEYS: buckets. ARGV: node, fence.
-- Gives the highest fence that they have.
local highest = 0
for _, bucket in ipairs(KEYS) do
    speaks_in(bucket, ARGV[1], ARGV[2])
    highest = math.max(highest, tonumber(call('HGET', bucket, 'fence') or 0))
end
return text(highest)
