-- KEYS: server. ARGV: offset ms, how many. Gives prefixes, seconds since it was first tried, records of the first and
-- last queues that should be active.
local server, limit = KEYS[1], tonumber(ARGV[2])
local s = call('HMGET', server, 'prefixes', 'tried', 'address')
if not s[3] then return false end
local records = {}
for _, item in ipairs(slice(server, 0, -1, '+inf', limit)) do records[#records + 1] = item[3] end
local left = limit
for _, g in ipairs(call('ZREVRANGE', server .. ':g', 0, -1)) do
    for _, id in ipairs(call('ZREVRANGE', server .. ':w:' .. g, 0, left - 1)) do
        records[#records + 1] = call('HGET', server .. ':q', id)
        left = left - 1
    end
    if left <= 0 then break end
end
return {s[1] or '', text(math.max(0, now_ms(ARGV[1]) / 1000 - tonumber(s[2]))), records}
