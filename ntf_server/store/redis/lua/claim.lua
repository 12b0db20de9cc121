-- A pair of device token and verify key is an attempt's, if it is nobody's, or was what is said.
-- KEYS: device. ARGV: verify key, token id and attempt, what it was or ''. Gives whose it is now.
-- It uses no other keys.
local was = call('HGET', KEYS[1], ARGV[1])
if was and was ~= ARGV[3] then return was end
call('HSET', KEYS[1], ARGV[1], ARGV[2])
return ARGV[2]
