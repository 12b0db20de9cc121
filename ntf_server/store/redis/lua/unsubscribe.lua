#!lua flags=allow-oom
-- Delete a subscription. What a service had of it the SMP server goes on counting.
-- KEYS: bucket. ARGV: notifier id, MD5 of that, the token that must have it, if that can be read, generation of the
-- server's associations, since which one its service is this one.
-- Gives its record, whether a service had it, and the server's address; nothing if it is not there.
local bucket, id = KEYS[1], ARGV[1]
local record = call('HGET', bucket .. ':q', id)
if not record then return false end
local status, _, generation, _, _, rest = unpack_head(record)
if (owner(rest) or ARGV[3]) ~= ARGV[3] then return false end
local associated = status <= WANTED and generation > 0 and generation == tonumber(ARGV[4])
unwant(bucket, generation, id)
call('HDEL', bucket .. ':e', id)
call('HDEL', bucket .. ':q', id)
if associated then
    account(bucket, 'assoc', generation, -1, ARGV[2])
    account(bucket, 'rel', tonumber(ARGV[5]), 1, ARGV[2])
end
return {record, associated and 1 or 0, call('HGET', bucket, 'address')}
