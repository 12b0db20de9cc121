#!lua flags=allow-oom
-- Hand out tokens. KEYS: shards. ARGV: offset ms, seconds that a code and a message are worth a push, number of this
-- call, then of each shard: its fence, how many that are due, how many that memory has already; ids of these, ids of those. Gives the content of
-- each; those that are not, or of a shard that is another node's by now, are left out.
local now, a, out = now_ms(ARGV[1]), 5, {}
local code_ttl, message_ttl, mark = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local over = math.floor(now / 1000) - message_ttl -- what came then is worth no push

-- The short way, of a plain token. Gives nothing if it is not that, else what `content` does.
local function quick(shard, id, f)
    local m, since, count, at = plain(f[1], f[2], f[3], f[4], f[6], f[7])
    if m ~= 0 or count == 0 or since <= over then return end
    local names, name = {}, nil
    name, at = name_at(f[7], at)
    while name do
        names[#names + 1] = name
        name, at = name_at(f[7], at)
    end
    while #names > 6 do table.remove(names, count + 1) end -- sent ones fill up
    local answer = messages(shard, id, f, names)
    call('HSET', shard .. ':taken', id, mark)
    call('HSET', shard .. ':t:' .. id, 'q', struct.pack('>d', mark) .. f[7]:sub(9))
    return answer, 1
end

local function slow(shard, id, f)
    local t = {f = f, q = unpack_q(f[7]), values = {}, changes = {}}
    local answer, kind, at = content(shard, id, now, code_ttl, message_ttl, t)
    if kind ~= -1 and t.q.m ~= mark then
        call('HSET', shard .. ':taken', id, mark)
        t.q.m = mark
        call('HSET', shard .. ':t:' .. id, 'q', pack_q(t.q))
    end
    return answer, kind, at
end

-- It is due until it is known to be handed out.
local function one(shard, id, f, is_due)
    local answer, kind, at = quick(shard, id, f)
    if not answer then answer, kind, at = slow(shard, id, f) end
    if is_due then call('ZREM', shard .. ':due:' .. f[5], id) end
    if kind == -1 then
        due(shard, id, f[5], at)
        let_go(shard, id)
    end
    return answer
end

for _, shard in ipairs(KEYS) do
    local mine, from_due, count = call('HGET', shard, 'fence') == ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
    local lanes = {}
    count = count + from_due
    a = a + 3
    for i = 0, mine and count - 1 or -1 do
        local id = ARGV[a + i]
        local f = fields(shard, id)
        local lane = f[5]
        local is_due = lane and i < from_due and call('ZSCORE', shard .. ':due:' .. lane, id)
        local m = mark_in(f[7])
        local has = is_due or (lane and i >= from_due and m ~= 0)
        has = has or (lane and m == mark) -- the answer of before did not arrive
        if has then out[#out + 1] = one(shard, id, f, is_due) end
        if has and i < from_due then lanes[lane] = true end
    end
    for lane in pairs(lanes) do head(shard, lane) end
    a = a + count
end
return out
