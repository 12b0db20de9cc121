-- A subscription. KEYS: server. ARGV: offset ms, node, notifier id.
-- Gives record, error, generation that counts, address, 1 if another node has a session in which all is confirmed.
local s = call('HMGET', KEYS[1], 'generation', 'address', 'node', 'until', 'fence', 'whole')
local held = s[3] and s[3] ~= '' and s[3] ~= ARGV[2] and tonumber(s[4]) > now_ms(ARGV[1])
local whole = held and s[5] == s[6]
return {call('HGET', KEYS[1] .. ':q', ARGV[3]), call('HGET', KEYS[1] .. ':e', ARGV[3]) or '', s[1] or '0', s[2],
    whole and 1 or 0}
