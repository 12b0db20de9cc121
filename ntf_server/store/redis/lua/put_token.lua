-- A registration that comes from another store, or more queues of it. KEYS: its shard. ARGV: id, lane, when it is due in
-- ms or '', how many fields and values there are, these; of each queue: its name, its newest notification or ''.
-- Notifications that come later are behind all of these, which are in the order in which they arrived.
local shard, id, lane, count = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[4])
local key, behind = shard .. ':t:' .. id, shard .. ':u:' .. id
local names, kept, by_state = {}, {}, {[0] = {}, [1] = {}, [2] = {}}

local function put(queue, value)
    local _, number, received, sent = struct.unpack('>dI4dB', value)
    local of = by_state[sent]
    of[#of + 1] = {received - 1e10 + (number % 1048576) / 1048576, queue, received}
end

local function in_order(items)
    table.sort(items, function(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end)
    local out = {}
    for i, item in ipairs(items) do out[i] = item[2] end
    return out
end

if count > 0 then
    call('HSET', key, unpack(ARGV, 5, 4 + count))
    index(shard, id)
    undue(shard, id, lane)
    due(shard, id, lane, tonumber(ARGV[3]))
end
local q, is_new = unpack_q(call('HGET', key, 'q')), {}
for i = 5 + count, #ARGV, 2 do
    local queue, value = ARGV[i], ARGV[i + 1]
    names[#names + 1], is_new[queue] = queue, true
    if value ~= '' then
        set(kept, queue, value)
        put(queue, value)
    end
end
if #names == 0 then return 0 end
call('SADD', shard .. ':q:' .. id, unpack(names))
if #kept == 0 then return 0 end
for _, before in ipairs({q.behind == 0 and q.u or {}, q.h}) do
    for _, queue in ipairs(before) do
        if not is_new[queue] then put(queue, call('HGET', key, queue)) end
    end
end
local unsent, sent = by_state[0], in_order(by_state[1])
for _, item in ipairs(unsent) do q.since = q.since == 0 and item[3] or math.min(q.since, item[3]) end
if q.behind > 0 or #unsent > FIRST then
    if q.behind == 0 then call('DEL', behind) end
    for _, item in ipairs(unsent) do call('ZADD', behind, item[1], item[2]) end
    look_behind(shard, id, q)
else
    q.u = in_order(unsent)
end
q.h = {unpack(sent, math.max(1, #sent - 5))}
if q.since ~= 0 then call('ZADD', shard .. ':waiting', 'LT', text(q.since), id) end
set(kept, 'q', pack_q(q))
call('HSET', key, unpack(kept))
return 0
