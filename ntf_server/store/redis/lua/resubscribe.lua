-- Put another record in the place of one. KEYS: bucket. ARGV: notifier id, the one that is there, what is to be behind
-- its head, '1': it is wanted anew. 0: another one is there by now.
local bucket, id = KEYS[1], ARGV[1]
if call('HGET', bucket .. ':q', id) ~= ARGV[2] then return 0 end
local status, damaged, generation, number, created = unpack_head(ARGV[2])
if ARGV[4] == '1' then
    unwant(bucket, generation, id)
    status, damaged, generation = 0, 0, 0
    want(bucket, 0, number, id)
    call('HDEL', bucket .. ':e', id)
end
call('HSET', bucket .. ':q', id, struct.pack(HEAD, status, damaged, generation, number, created) .. ARGV[3])
return 1
