-- A server has queues in buckets, which come from another store. KEYS: server. ARGV: the highest number of these queues,
-- buckets.
local server = KEYS[1]
for i = 2, #ARGV do call('ZADD', server .. ':b', 0, ARGV[i]) end
call('HSET', server, 'number', text(math.max(tonumber(call('HGET', server, 'number') or 0), tonumber(ARGV[1]))))
return 0
