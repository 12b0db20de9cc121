-- Notifications of tokens' queues: each becomes its queue's newest, unless a later one is there; the token is due, or
-- handed out. KEYS: shards. ARGV: offset ms, seconds that a code and a message are worth a push, number of this call,
-- '1' if more come than can be stored, how many lanes and providers nothing is to be handed out of, these; then of each
-- shard: the fence under which the asking node has it or '', how many tokens; of each token: id, '1' if it may be
-- handed out, '2': whatever its lane, how many queues; of each: queue, value.
-- Gives for each token 0 (gone), 1 (nothing to do), {lane} (due now, of a shard that the node has), 2 (due now, of
-- another) or its content.
local now, a, out, barred = now_ms(ARGV[1]), 7 + tonumber(ARGV[6]), {}, {}
local code_ttl, message_ttl, mark, crowd = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1'
local over = math.floor(now / 1000) - message_ttl -- what came then is worth no push
for i = 7, a - 1 do barred[ARGV[i]] = true end

-- Of `fields` the first ones, and queues from FEW + 1 on: enough where nothing is handed out.
local FEW = 7
local function few(shard, id, ...)
    return call('HMGET', shard .. ':t:' .. id, 's', 'v', 'k', 'x', 'l', 'n', 'q', ...)
end

-- What `content` takes, of fields and what is kept of the queues.
local function whole(f, own, from, last)
    local values = {}
    for i = from, last, 2 do values[ARGV[i]] = f[own + 1 + (i - from) / 2] end
    return {f = f, q = unpack_q(f[7]), values = values, changes = {}}
end

local function keep_newest(shard, id, t, from, last)
    local q, values, changes = t.q, t.values, t.changes
    local since = q.since
    for i = from, last, 2 do
        local queue, value = ARGV[i], ARGV[i + 1]
        local fence, number, received = stamp(value)
        local old, newer = values[queue], true
        if old then
            local f, n, _, sent = stamp(old)
            newer = fence > f or (fence == f and (number > n or (number == n and sent == 0))) -- once more
        end
        if newer then
            came(shard, id, q, queue, value)
            values[queue] = value
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

-- Whether this node may have the token now; `free`: see ARGV, false in a shard that is another's.
local function may_have(free, lane)
    return free == '2' or (free == '1' and not (barred[lane] or barred[lane:sub(1, 2)]))
end

-- The short way: a plain token with one new notification, of which nothing else is under way. Gives nothing if it is
-- not that.
local function quick(shard, id, f, old, mine, free, queue, value)
    local m, since, count, at = plain(f[1], f[2], f[3], f[4], f[6], f[7])
    if m ~= 0 or count ~= 0 or since <= over then return end
    local lane, has = f[5], may_have(free, f[5])
    if has and crowd then return end
    local fence, number, received = stamp(value)
    local f_kept, n_kept = stamp(old)
    if received < since or fence < f_kept or (fence == f_kept and number <= n_kept) then return end
    if call('ZSCORE', shard .. ':due:' .. lane, id) then return end
    local sent, rest, name, behind = {}, f[7]:sub(at), name_at(f[7], at)
    while name do
        if name == queue then
            rest = f[7]:sub(22, at - 1) .. f[7]:sub(behind)
        else
            sent[#sent + 1] = name
        end
        at = behind
        name, behind = name_at(f[7], at)
    end
    local answer = mine and {lane} or 2
    if has then
        if #sent > 5 then table.remove(sent, 1) end
        answer = messages(shard, id, f, sent, queue, value)
        call('HSET', shard .. ':taken', id, mark)
    end
    local q = struct.pack('>ddI4BH', has and mark or 0, since, 0, 1, #queue) .. queue .. rest
    call('HSET', shard .. ':t:' .. id, queue, value, 'q', q)
    if not has then due(shard, id, lane, now) end
    return answer
end

-- `mine`: this node has the shard.
local function one(shard, id, t, mine, free, from, last)
    local f, q = t.f, t.q
    local lane, again = f[5], free and q.m == mark -- the answer of before did not arrive
    local fresh = keep_newest(shard, id, t, from, last)
    local is_due = not again and fresh and f[1] == 'ACTIVE' and not f[4] and q.m == 0 and not waits(shard, id, lane, f[2], now)
    if not again and not (is_due and may_have(free, lane)) then
        if fresh then set(t.changes, 'q', pack_q(q)) end
        save(shard, id, t)
        if not is_due then return 1 end
        due(shard, id, lane, now)
        return mine and {lane} or 2
    end
    local answer, kind, at = content(shard, id, now, code_ttl, message_ttl, t, crowd)
    if kind ~= -1 and not again then
        call('HSET', shard .. ':taken', id, mark)
        t.q.m = mark
    end
    set(t.changes, 'q', pack_q(t.q))
    save(shard, id, t)
    if kind == -1 then
        due(shard, id, lane, at)
        let_go(shard, id)
    end
    return answer
end

for _, shard in ipairs(KEYS) do
    local fence, count = ARGV[a], tonumber(ARGV[a + 1])
    local mine = fence ~= '' and call('HGET', shard, 'fence') == fence
    local read, own = mine and fields or few, mine and OWN or FEW
    a = a + 2
    for _ = 1, count do
        local id, free, from, f, answer = ARGV[a], mine and ARGV[a + 1] ~= '' and ARGV[a + 1], a + 3, nil, nil
        a = from + 2 * tonumber(ARGV[a + 2])
        if a == from + 2 then
            f = read(shard, id, ARGV[from])
            answer = quick(shard, id, f, f[own + 1], mine, free, ARGV[from], ARGV[from + 1])
        else
            local queues = {}
            for i = from, a - 1, 2 do queues[#queues + 1] = ARGV[i] end
            f = read(shard, id, unpack(queues))
        end
        out[#out + 1] = answer or (f[1] and one(shard, id, whole(f, own, from, a - 1), mine, free, from, a - 1)) or 0
    end
end
return out
