-- A new subscription. KEYS: its bucket. ARGV: offset ms, notifier id, record behind its head with the spelling of the
-- server's address, the same without, the address as it is spelled, '1' if it may be made, what `enlist` gave: node, fence,
-- address, number.
-- Gives {0, record, address} of the one that is there, {1} if it was made, {2} if it may not.
local bucket, id = KEYS[1], ARGV[2]
local s = call('HMGET', bucket, 'address', 'number')
local address, number = s[1], math.max(tonumber(ARGV[10]), tonumber(s[2] or 0) + 1) -- which a failover may have lost there
local there = call('HGET', bucket .. ':q', id)
if there then return {0, there, address} end
if ARGV[6] ~= '1' then return {2} end
if address then
    speaks_in(bucket, ARGV[7], ARGV[8]) -- the queue comes, whoever speaks there by now
else
    call('HSET', bucket, 'address', ARGV[9], 'node', ARGV[7], 'fence', ARGV[8])
end
call('HSET', bucket, 'number', text(number))
local rest = ARGV[5] == (address or ARGV[9]) and ARGV[4] or ARGV[3]
want(bucket, 0, number, id)
call('HSET', bucket .. ':q', id, struct.pack(HEAD, 0, 0, 0, number, math.floor(now_ms(ARGV[1]) / 1000)) .. rest)
return {1}
