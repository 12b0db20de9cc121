-- A registration that comes from another store, or more queues of it. KEYS: its shard. ARGV: id, lane, when it is due in
-- ms or '', how many fields and values there are, these; of each queue: its name, its newest notification or ''.
-- Notifications that come later are behind all of these, which are in the order in which they arrived.
local shard, id, lane, count = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[4])
if count > 0 then
    call('HSET', shard .. ':t:' .. id, unpack(ARGV, 5, 4 + count))
    index(shard, id)
    undue(shard, id, lane)
    due(shard, id, lane, tonumber(ARGV[3]))
end
for i = 5 + count, #ARGV, 2 do
    local queue, value = ARGV[i], ARGV[i + 1]
    call('SADD', shard .. ':q:' .. id, queue)
    if value ~= '' then
        local _, number, received, sent = struct.unpack('>dI4dB', value)
        local order = received - 1e10 + (number % 1048576) / 1048576
        call('HSET', shard .. ':n:' .. id, queue, value)
        if sent == 0 then
            call('ZADD', shard .. ':u:' .. id, order, queue)
            call('ZADD', shard .. ':waiting', 'LT', text(received), id)
        elseif sent == 1 then
            call('ZADD', shard .. ':h:' .. id, order, queue)
        end
    end
end
call('ZREMRANGEBYRANK', shard .. ':h:' .. id, 0, -7)
return 0
