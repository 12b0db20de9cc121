-- What tokens there are, of `limit` of a shard behind an id. KEYS: shard. ARGV: offset ms, id or '', limit, then spans (s).
-- Gives how many that were, the id of the last one, of each span how many took a push within it; then of each kind
-- provider, status and how many, where those that are set aside have the status `damaged`.
local shard, after, out, kinds = KEYS[1], ARGV[2], {}, {}
local now = math.floor(now_ms(ARGV[1]) / 1000)
local ids = call('ZRANGEBYLEX', shard .. ':all', after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, ARGV[3])
for i = 4, #ARGV do out[i - 1] = 0 end
for _, id in ipairs(ids) do
    local t = call('HMGET', shard .. ':t:' .. id, 's', 'x', 'l', 'd')
    local kind = (t[3] or '--'):sub(1, 2) .. (t[2] and 'damaged' or t[1] or 'damaged')
    kinds[kind] = (kinds[kind] or 0) + 1
    for i = 4, #ARGV do
        if t[4] and now - tonumber(t[4]) < tonumber(ARGV[i]) then out[i - 1] = out[i - 1] + 1 end
    end
end
out[1], out[2] = #ids, ids[#ids] or ''
for kind, count in pairs(kinds) do
    out[#out + 1], out[#out + 2], out[#out + 3] = kind:sub(1, 2), kind:sub(3), count
end
return out
