-- What upkeep looks at of a server. KEYS: it. ARGV: offset ms, seconds for which a proven one is kept.
-- Gives generation of associations, since which one the service is this one, '1' if it is to be forgotten unless it has
-- queues, when it was first seen without or '', then its buckets and their times.
local server, now = KEYS[1], now_ms(ARGV[1])
local s = call('HMGET', server, 'generation', 'since', 'node', 'until', 'proven', 'unused')
local held = s[3] and s[3] ~= '' and tonumber(s[4]) > now
local kept = s[5] and (not s[6] or tonumber(s[6]) > math.floor(now / 1000) - tonumber(ARGV[2]))
return {s[1] or '0', s[2] or '0', (held or kept) and '' or '1', s[6] or '',
    unpack(call('ZRANGE', server .. ':b', 0, -1, 'WITHSCORES'))}
