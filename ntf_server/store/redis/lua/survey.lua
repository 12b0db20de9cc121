-- Registrations behind an id, for an operator. KEYS: shard. ARGV: id or '', limit. Gives of each its id, fields s w p aa
-- x r ra i, and how many queues it has.
local shard, after, out = KEYS[1], ARGV[1], {}
local ids = ids_behind(shard, after, ARGV[2])
for n, id in ipairs(ids) do
    local fields = call('HMGET', shard .. ':t:' .. id, 's', 'w', 'p', 'aa', 'x', 'r', 'ra', 'i')
    out[n] = {id, fields, call('SCARD', shard .. ':q:' .. id)}
end
return out
