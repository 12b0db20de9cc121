-- Notifications of tokens' queues: each becomes its queue's newest, unless a later one is there; the token is due, or
-- handed out.
-- KEYS: shards. ARGV: offset ms, seconds that a code and a message are worth a push, number of this call, '1' if more
-- come than can be stored, then of each shard: the fence under which the asking node has it or '', how many tokens; of each token: id, '1' if it may be handed out, how many queues;
-- of each: queue, value.
-- Gives for each token 0 (gone), 1 (nothing to do), {lane} (due now, of a shard that the node has), 2 (due now, of
-- another) or its content.
local now, a, out = now_ms(ARGV[1]), 6, {}
local code_ttl, message_ttl, mark, crowd = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1'

local function keep_newest(shard, id, t, from, count)
    local q, changes = t.q, t.changes
    local since = q.since
    for i = from, from + 2 * (count - 1), 2 do
        local queue, value = ARGV[i], ARGV[i + 1]
        local fence, number, received = stamp(value)
        local old, newer = t.values[queue], true
        if old then
            local f, n, _, sent = stamp(old)
            newer = fence > f or (fence == f and (number > n or (number == n and sent == 0))) -- once more
        end
        if newer then
            came(shard, id, q, queue, value)
            t.values[queue] = value
            set(changes, queue, value)
            if since == 0 or received < since then since = received end
        end
    end
    if #changes == 0 then return false end
    if since ~= q.since then
        call('ZADD', shard .. ':waiting', 'LT', text(since), id)
        q.since = since
    end
    return true
end

-- `free`: this node may have it now; `mine`: it has the shard.
local function one(shard, id, t, mine, free, from, count)
    local lane, again = t[5], free and t.q.m == mark -- the answer of before did not arrive
    local fresh = keep_newest(shard, id, t, from, count)
    local is_due = not again and fresh and t[1] == 'ACTIVE' and not t[4] and t.q.m == 0 and not waits(shard, id, lane, t[2], now)
    if not again and not (is_due and free) then
        if fresh then set(t.changes, 'q', pack_q(t.q)) end
        save(shard, id, t)
        if not is_due then return 1 end
        due(shard, id, lane, now)
        return mine and {lane} or 2
    end
    local answer, at = content(shard, id, now, code_ttl, message_ttl, t, crowd)
    if answer[2] ~= -1 and not again then
        call('HSET', shard .. ':taken', id, mark)
        t.q.m = mark
    end
    set(t.changes, 'q', pack_q(t.q))
    save(shard, id, t)
    if answer[2] == -1 then
        due(shard, id, lane, at)
        let_go(shard, id)
    end
    return answer
end

for _, shard in ipairs(KEYS) do
    local fence, count = ARGV[a], tonumber(ARGV[a + 1])
    local mine = fence ~= '' and call('HGET', shard, 'fence') == fence
    a = a + 2
    for _ = 1, count do
        local id, free, queues = ARGV[a], mine and ARGV[a + 1] == '1', {}
        local from = a + 3
        a = from + 2 * tonumber(ARGV[a + 2])
        for i = from, a - 1, 2 do queues[#queues + 1] = ARGV[i] end
        local t = fields(shard, id, queues)
        out[#out + 1] = t[1] and one(shard, id, t, mine, free, from, #queues) or 0
    end
end
return out
