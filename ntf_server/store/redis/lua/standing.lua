-- What a server has proved. KEYS: server. ARGV: offset ms. Gives prefixes, seconds since it was first tried, its buckets;
-- nothing if it is not known.
local s = call('HMGET', KEYS[1], 'prefixes', 'tried', 'address')
if not s[3] then return false end
return {s[1] or '', text(math.max(0, now_ms(ARGV[1]) / 1000 - tonumber(s[2]))), call('ZRANGE', KEYS[1] .. ':b', 0, -1)}
