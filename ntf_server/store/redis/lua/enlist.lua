-- A queue is to come into a bucket of a server. KEYS: server. ARGV: offset ms, number of the bucket, the server's address.
-- Gives node and fence of who speaks for the server, its address, the queue's number.
local server, now = KEYS[1], now_ms(ARGV[1])
local s = call('HMGET', server, 'node', 'fence', 'address')
if not s[3] then call('HSET', server, 'address', ARGV[3], 'tried', text(math.floor(now / 1000))) end
call('ZADD', server .. ':b', text(now), ARGV[2])
return {s[1] or '', s[2] or '0', s[3] or ARGV[3], call('HINCRBY', server, 'number', 1)}
