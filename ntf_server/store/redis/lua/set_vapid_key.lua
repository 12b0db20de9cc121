-- A token's subscription is for another VAPID key than its record says: a new record, if the old one is still there.
-- KEYS: its shard. ARGV: id, old record, new record. Gives whether.
local key = KEYS[1] .. ':t:' .. ARGV[1]
if call('HGET', key, 'r') ~= ARGV[2] then return 0 end
call('HSET', key, 'r', ARGV[3])
return 1
