#!lua flags=allow-oom
-- Delete a subscription. What a service had of it the SMP server goes on counting.
-- KEYS: server. ARGV: offset ms, notifier id, MD5 of that, the token that must have it, if that can be read.
-- Gives its record, whether a service had it, and the server's address; nothing if it is not there.
local server, id = KEYS[1], ARGV[2]
local record = call('HGET', server .. ':q', id)
if not record then return false end
local status, _, generation, _, _, rest = unpack_head(record)
if (owner(rest) or ARGV[4]) ~= ARGV[4] then return false end
local s = call('HMGET', server, 'generation', 'address')
local associated = status <= WANTED and generation > 0 and generation == tonumber(s[1] or 0)
unwant(server, generation, id)
call('HDEL', server .. ':e', id)
call('HDEL', server .. ':q', id)
if call('EXISTS', server .. ':q') == 0 then
    call('HSET', server, 'unused', text(math.floor(now_ms(ARGV[1]) / 1000)))
end
if associated then account(server, 'rel_n', 'rel_x', 1, ARGV[3]) end
return {record, associated and 1 or 0, s[2]}
