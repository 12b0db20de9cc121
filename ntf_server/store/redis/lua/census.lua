-- What tokens there are, of `limit` of a shard behind an id. KEYS: shard. ARGV: offset ms, id or '', limit, then spans (s).
-- Gives how many that were, the id of the last one, of each span how many took a push within it; then of each kind
-- provider, status, id of the VAPID key in hex (Web Push alone has one) and how many, where those that are set aside have
-- the status `damaged`.
local shard, after, out, kinds = KEYS[1], ARGV[2], {}, {}
local now = math.floor(now_ms(ARGV[1]) / 1000)
local ids = ids_behind(shard, after, ARGV[3])
-- The ninth field of a record, all of which are texts before it (cmsgpack reads no binary ones).
local function vapid_key(record)
    local at = 2
    for field = 1, 9 do
        local head, a, b = record:byte(at, at + 2)
        local size
        if not b then return '' end
        if head >= 0xa0 and head <= 0xbf then size, at = head - 0xa0, at + 1
        elseif head == 0xc4 or head == 0xd9 then size, at = a, at + 2
        elseif head == 0xc5 or head == 0xda then size, at = a * 256 + b, at + 3
        else return '' end
        if field == 9 then return (record:sub(at, at + size - 1):gsub('.', function(c) return ('%02x'):format(c:byte()) end)) end
        at = at + size
    end
end
for i = 4, #ARGV do out[i - 1] = 0 end
for _, id in ipairs(ids) do
    local t = call('HMGET', shard .. ':t:' .. id, 's', 'x', 'l', 'd')
    local provider, status = (t[3] or '--'):sub(1, 2), t[2] and 'damaged' or t[1] or 'damaged'
    local kind = provider .. '|' .. status .. '|' .. (provider == 'WP' and vapid_key(call('HGET', shard .. ':t:' .. id, 'r') or '') or '')
    kinds[kind] = (kinds[kind] or 0) + 1
    for i = 4, #ARGV do
        if t[4] and now - tonumber(t[4]) < tonumber(ARGV[i]) then out[i - 1] = out[i - 1] + 1 end
    end
end
out[1], out[2] = #ids, ids[#ids] or ''
for kind, count in pairs(kinds) do
    for word in (kind .. '|'):gmatch('([^|]*)|') do out[#out + 1] = word end
    out[#out + 1] = count
end
return out
