-- What its server says of a subscription. KEYS: server. ARGV: offset ms, node.
-- Gives the generation that counts, 1 if another node has a session in which all is confirmed.
local s = call('HMGET', KEYS[1], 'generation', 'node', 'until', 'fence', 'whole')
local held = s[2] and s[2] ~= '' and s[2] ~= ARGV[2] and tonumber(s[3]) > now_ms(ARGV[1])
return {tonumber(s[1] or 0), held and s[4] == s[5] and 1 or 0}
