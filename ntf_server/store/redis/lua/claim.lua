-- A pair of device token and verify key is a registration's, if it is nobody's, or was what is said.
-- KEYS: device. ARGV: verify key, token id, the id that it was or ''. Gives the id whose it is now.
-- It uses no other keys.
local was = call('HGET', KEYS[1], ARGV[1])
if was and was ~= ARGV[3] then return was end
call('HSET', KEYS[1], ARGV[1], ARGV[2])
return ARGV[2]
