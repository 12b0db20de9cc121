-- A new subscription. KEYS: server. ARGV: offset ms, notifier id, record behind its head with the spelling of the server's
-- address, the same without, the address as it is spelled, the plain one, how many the server may have (0: any number).
-- Gives {0, record, address} of the one that is there, {1} if it was made, {2} if there are too many.
local server, id, limit = KEYS[1], ARGV[2], tonumber(ARGV[7])
local address = call('HGET', server, 'address')
local there = call('HGET', server .. ':q', id)
if there then return {0, there, address} end
if limit > 0 and call('HLEN', server .. ':q') >= limit then return {2} end
local seconds = math.floor(now_ms(ARGV[1]) / 1000)
if not address then call('HSET', server, 'address', ARGV[6], 'tried', text(seconds)) end
local rest = ARGV[5] == (address or ARGV[6]) and ARGV[4] or ARGV[3]
local number = call('HINCRBY', server, 'number', 1)
want(server, 0, number, id)
call('HSET', server .. ':q', id, struct.pack(HEAD, 0, 0, 0, number, seconds) .. rest)
return {1}
