-- What scripts share. A shard of tokens is the key of its lease, `P:{tNN}`; all that is in it is named after that:
--   :t:ID    hash, a token, and queue -> newest notification      :q:ID  set, its queues
--   :u:ID    zset, queues with an unsent one, all of them, of a token that has more than q takes
--   :n:ID    hash, what a token is to become: a attempt, l, r, c as below, wait seconds that the code waits
--   :coming  zset, tokens that have that, by since when (ms)
--   :due:L   zset, tokens of a lane by when they are due (ms)   :lanes:P  zset, lanes of a provider by their first
--   :taken   hash, tokens that the holder's memory has, and by which of its calls           
--   :doubts  zset, tokens and queues that a command began with, by when (ms)   :gone  set, tokens that are not yet cleared
--   :all :unproven :active :period :codes :checks :waiting  zsets of tokens, by their times
-- Fields of a token: s status, w why, g registration, ra registered at, v code due, c code, k check due, p period,
-- pa period began, aa active at, o proven, l lane, r record (sealed), x damaged, n tries that failed, i last push: when,
-- its id and how it ended (`pushed`), d delivered at. Seconds, but for what is called ms. And q (`unpack_q`),
-- what would be some keys and fields: these cost more than what is in them.
-- While a slot moves to another server what is not here ends a script: it is done again when all is there. What makes
-- keys does not begin before that (`script.py`); what does not is where its keys are, all of them.
local call = redis.call
local ALIVE = {REGISTERED = true, CONFIRMED = true, ACTIVE = true}

-- `offset`: what is added to the server's time, in ms; or `=` and the time itself, where a test says it.
local function now_ms(offset)
    if offset:sub(1, 1) == '=' then return tonumber(offset:sub(2)) end
    local t = call('TIME')
    return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000) + tonumber(offset)
end

local function text(number)
    return string.format('%.0f', number)
end

-- So many tokens of a shard behind an id, '': the first ones.
local function ids_behind(shard, after, limit)
    return call('ZRANGEBYLEX', shard .. ':all', after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, limit)
end

local function head(shard, lane)
    local first = call('ZRANGE', shard .. ':due:' .. lane, 0, 0, 'WITHSCORES')
    local lanes = shard .. ':lanes:' .. lane:sub(1, 2)
    if first[2] then
        call('ZADD', lanes, first[2], lane)
    else
        call('ZREM', lanes, lane)
    end
end

-- Due at this time, or before if it was; no time: nothing is.
local function due(shard, id, lane, at)
    if not at then return end
    call('ZADD', shard .. ':due:' .. lane, 'LT', at, id)
    call('ZADD', shard .. ':lanes:' .. lane:sub(1, 2), 'LT', at, lane)
end

local function undue(shard, id, lane)
    if call('ZREM', shard .. ':due:' .. lane, id) == 1 then
        head(shard, lane)
    end
end

-- Whether it waits for a retry, or is due: then nothing else makes it due. One that waits for its code's turn only is due
-- no more.
local function waits(shard, id, lane, code, now)
    local at = call('ZSCORE', shard .. ':due:' .. lane, id)
    if not at then return false end
    if tonumber(at) <= now or not code or tonumber(code) * 1000 ~= tonumber(at) then return true end
    undue(shard, id, lane)
    return false
end

-- Whether a token's field q says that it has an unsent notification.
local function has_unsent(value)
    return value and (value:byte(21) or 0) > 0
end

-- When anything of it is due, in ms; nothing if nothing is. `t`: its fields s, v, k, x, and
-- whether it has an unsent notification, if that is known.
local function pending(shard, id, now, t)
    if not t then
        t = call('HMGET', shard .. ':t:' .. id, 's', 'v', 'k', 'x', 'q')
        t[5] = has_unsent(t[5])
    end
    if not t[1] or t[4] then return nil end
    if t[1] == 'ACTIVE' and (t[3] or t[5]) then return now end
    return t[2] and math.max(now, tonumber(t[2]) * 1000) or nil
end

-- Which call handed it out, before :taken says so. Nothing is made of a token that is not there.
local function set_mark(shard, id, mark)
    local q = call('HGET', shard .. ':t:' .. id, 'q')
    if q and #q > 8 then call('HSET', shard .. ':t:' .. id, 'q', struct.pack('>d', mark) .. q:sub(9)) end
end

-- Memory has it no more. What its field q says, :taken says too, at every moment.
local function let_go(shard, id)
    set_mark(shard, id, 0)
    call('HDEL', shard .. ':taken', id)
end

-- Whether one of so many calls of who has the shard under this fence handed it out: when something is done once more, by
-- then a later one may have, and it may be claimed.
local function was_handed(shard, id, fence, calls)
    local mark = tonumber(call('HGET', shard .. ':taken', id) or nil)
    return mark and mark <= tonumber(calls) and call('HGET', shard, 'fence') == fence
end

local function keep(key, id, score)
    if score then
        call('ZADD', key, score, id)
    else
        call('ZREM', key, id)
    end
end

-- What finds tokens by their times.
local function index(shard, id)
    local t = call('HMGET', shard .. ':t:' .. id, 's', 'v', 'k', 'x', 'p', 'pa', 'o', 'ra', 'aa')
    keep(shard .. ':all', id, t[1] and 0)
    keep(shard .. ':codes', id, t[2])
    keep(shard .. ':checks', id, t[3])
    local periodic = t[1] == 'ACTIVE' and not t[3] and t[5] and t[5] ~= '0'
    keep(shard .. ':period', id, periodic and text(tonumber(t[6]) + tonumber(t[5]) * 60))
    keep(shard .. ':unproven', id, t[1] and not t[7] and t[8])
    keep(shard .. ':active', id, t[7] and t[9])
end

-- Of a token's field q: m which call handed it out, as :taken says, 0 none; since, no later than that did any unsent
-- notification arrive, 0 none is known; behind, how many queues are in :u:ID; u queues with an unsent notification, that
-- which came first first, but if :u:ID has all of them only the first; h those whose newest went out last.
local Q_HEAD = '>ddI4B'
local FIRST = 16 -- as many are in u; a push needs to know of 7

-- Of this field m alone.
local function mark_in(value)
    return value and #value >= 21 and struct.unpack('>d', value) or 0
end

local function unpack_q(value)
    if not value or #value < 21 then return {m = 0, since = 0, behind = 0, u = {}, h = {}} end
    local m, since, behind, count, at = struct.unpack(Q_HEAD, value)
    local u, h = {}, {}
    local high, low = value:byte(at, at + 1)
    for i = 1, FIRST + 6 do
        if not low then break end
        local last = at + 1 + high * 256 + low
        if i <= count then
            u[i] = value:sub(at + 2, last)
        else
            h[i - count] = value:sub(at + 2, last)
        end
        at = last + 1
        high, low = value:byte(at, at + 1)
    end
    return {m = m, since = since, behind = behind, u = u, h = h}
end

local function pack_q(q)
    local u, h = q.u, q.h
    local count = #u
    if count + #h == 1 then -- as most are
        local queue = u[1] or h[1]
        return struct.pack('>ddI4BH', q.m, q.since, q.behind, count, #queue) .. queue
    end
    local out = {struct.pack(Q_HEAD, q.m, q.since, q.behind, count)}
    for i = 1, count + #h do
        local queue = u[i] or h[i - count]
        out[2 * i], out[2 * i + 1] = struct.pack('>H', #queue), queue
    end
    return table.concat(out)
end

-- Most tokens have nothing but a few messages to be pushed, by the first try. Of these, by their fields, gives of q: m,
-- since, how many are in u, and where names begin; of others nothing. A script has a short way for them, which makes
-- few values in Lua, and does what the long way would do.
local function plain(status, code, check, damaged, tries, value)
    if status ~= 'ACTIVE' or code or check or damaged or tries ~= '0' or not value or #value < 21 then return end
    local m, since, behind, count, at = struct.unpack(Q_HEAD, value)
    if behind == 0 and count <= 6 then return m, since, count, at end
end

-- The name at a place of field q, and where the next one is; nothing: there is none.
local function name_at(value, at)
    local high, low = value:byte(at, at + 1)
    if not low then return end
    local last = at + 1 + high * 256 + low
    return value:sub(at + 2, last), last + 1
end

local function drop_from(queues, queue)
    for i, found in ipairs(queues) do
        if found == queue then
            table.remove(queues, i)
            return true
        end
    end
    return false
end

local function look_behind(shard, id, q)
    q.u = call('ZRANGE', shard .. ':u:' .. id, 0, FIRST - 1)
    q.behind = call('ZCARD', shard .. ':u:' .. id)
end

-- A queue's newest is unsent, and came last. Where more have such than u takes, its value is there before its name is.
local function came(shard, id, q, queue, value)
    if #q.h > 0 then drop_from(q.h, queue) end
    local is_first = #q.u > 0 and drop_from(q.u, queue)
    if q.behind == 0 and #q.u < FIRST then
        q.u[#q.u + 1] = queue
        return
    end
    local unsent = shard .. ':u:' .. id
    call('HSET', shard .. ':t:' .. id, queue, value)
    if q.behind == 0 then
        call('DEL', unsent)
        for i, first in ipairs(q.u) do call('ZADD', unsent, i, first) end
    end
    local last = call('ZRANGE', unsent, -1, -1, 'WITHSCORES')
    call('ZADD', unsent, text(tonumber(last[2] or 0) + 1), queue)
    if is_first then
        look_behind(shard, id, q)
    else
        q.behind = call('ZCARD', unsent)
    end
end

-- These queues have no unsent one any more.
local function went(shard, id, q, queues)
    if q.behind > 0 then
        call('ZREM', shard .. ':u:' .. id, unpack(queues))
        look_behind(shard, id, q)
    else
        for _, queue in ipairs(queues) do drop_from(q.u, queue) end
    end
end

-- A notification: fence, number, received at, sent (0 no, 1 yes, 2 its time is over), and what only the engine reads.
local SENT, OVER = '\1', '\2'
local function sent_as(value, how)
    return value:sub(1, 20) .. how .. value:sub(22)
end

-- Of what is kept for a queue, or nothing: fence, number, received at, how it was sent. What is cut is older than all, and over.
local function stamp(value)
    if not value or #value < 21 then return 0, 0, 0, 2 end
    return struct.unpack('>dI4dB', value)
end

-- Give up what of it arrived so long ago: how many, and what its field q says then.
local function expire(shard, id, oldest, limit)
    local key, over = shard .. ':t:' .. id, {}
    local q = unpack_q(call('HGET', key, 'q'))
    for _, queue in ipairs(q.behind > 0 and call('ZRANGE', shard .. ':u:' .. id, 0, limit - 1) or q.u) do
        local value = call('HGET', key, queue)
        local _, _, received = stamp(value)
        if received <= oldest then
            if received > 0 then
                call('HSET', key, queue, sent_as(value, OVER))
            else
                call('HDEL', key, queue)
            end
            over[#over + 1] = queue
        end
    end
    if #over > 0 then
        went(shard, id, q, over)
        call('HSET', key, 'q', pack_q(q))
    end
    return #over, q
end

-- Of a token what a push needs, and of queues their newest notifications, from OWN + 1 on.
local OWN = 11
local function fields(shard, id, ...)
    return call('HMGET', shard .. ':t:' .. id, 's', 'v', 'k', 'x', 'l', 'n', 'q', 'g', 'ra', 'r', 'd', ...)
end

local function set(changes, name, value)
    local n = #changes
    changes[n + 1], changes[n + 2] = name, value
end

local function save(shard, id, t)
    if #t.changes == 0 then return end
    call('HSET', shard .. ':t:' .. id, unpack(t.changes))
    t.changes = {}
end

local function push_id(value)
    local size = value and value:byte(9)
    return size and value:sub(10, 9 + size) or ''
end

-- What is to be pushed to a token that memory has, for whoever claims it, and its kind. `t`: `f` its fields, `q`, `values`
-- of queues that are known, `changes` that go out with one command. Kind -1: nothing, and memory is to have it no more;
-- then the third result is when anything is due, in ms.
-- The first is a list: CONTENT, which has the kind (0 code, 1 messages, 2 check), since, '1' for more behind it, expired
-- codes, checks and notifications, '1' for one that had a push before, how many queues it has if there is a `crowd`;
-- then the token's id, fields l, g, ra, r, its code, n, the last push's id; then queue and value of each notification.
local CONTENT = '>i4dBBBI4BI4'
local function content(shard, id, now, code_ttl, message_ttl, t, crowd)
    local f, q, key, seconds = t.f, t.q, shard .. ':t:' .. id, math.floor(now / 1000)
    local late_codes, late_checks, late = 0, 0, 0
    local code, check = f[2] and tonumber(f[2]), f[3] and tonumber(f[3])
    if code and code <= seconds - code_ttl then
        call('HDEL', key, 'v')
        call('ZREM', shard .. ':codes', id)
        code, late_codes = nil, 1
    end
    if check and check <= seconds - message_ttl then
        call('HDEL', key, 'k')
        index(shard, id)
        check, late_checks = nil, 1
    end
    local active = f[1] == 'ACTIVE'
    local waits = code and code > seconds
    local kind, since, more, entries = -1, 0, false, nil
    if f[1] and not f[4] then
        if code and not waits then
            kind, since, more = 0, code, active
        elseif active then
            if #q.u > 0 and q.since <= seconds - message_ttl then
                set(t.changes, 'q', pack_q(q))
                save(shard, id, t)
                late, q = expire(shard, id, seconds - message_ttl, 2000)
                t.q = q
            end
            local unsent, sent = q.u, q.h
            if #unsent > 0 then
                kind, more, entries = 1, #unsent > 6 or check or waits, {}
                for i = 1, math.min(#unsent, 6) do entries[i] = unsent[i] end
                for i = math.max(1, #sent - 5 + #entries), #sent do entries[#entries + 1] = sent[i] end
            elseif check then
                kind, since, more = 2, check, waits
            end
        end
    end
    local queues = kind ~= -1 and crowd and call('SCARD', shard .. ':q:' .. id) or 0
    local head = struct.pack(CONTENT, kind, since, more and 1 or 0, late_codes, late_checks, late, f[11] and 1 or 0, queues)
    if kind == -1 then return {head, id}, kind, f[1] and waits and code * 1000 end
    local tries = f[6] or '0'
    local out = {head, id, f[5], f[8], f[9], f[10], kind == 0 and call('HGET', key, 'c') or '', tries,
        tries ~= '0' and push_id(call('HGET', key, 'i')) or ''}
    if kind == 1 then
        local values, unknown = t.values, nil
        for _, queue in ipairs(entries) do
            if not values[queue] then
                unknown = unknown or {}
                unknown[#unknown + 1] = queue
            end
        end
        if unknown then
            local found = call('HMGET', key, unpack(unknown))
            for i, queue in ipairs(unknown) do values[queue] = found[i] end
        end
        for i, queue in ipairs(entries) do
            out[8 + 2 * i], out[9 + 2 * i] = queue, values[queue]
        end
    end
    return out, kind
end

-- The same of messages of a `plain` token: that of a queue, if it is given, then those of the queues `names`.
local function messages(shard, id, f, names, queue, value)
    local out = {struct.pack(CONTENT, 1, 0, 0, 0, 0, 0, f[11] and 1 or 0, 0), id, f[5], f[8], f[9], f[10], '', '0', '',
        queue, value}
    if names[1] then
        local found, n = call('HMGET', shard .. ':t:' .. id, unpack(names)), #out
        for i, name in ipairs(names) do out[n + 2 * i - 1], out[n + 2 * i] = name, found[i] end
    end
    return out
end

-- A shard's holder: its fence, or an error.
local function holds(shard, fence)
    if call('HGET', shard, 'fence') ~= fence then
        return redis.error_reply('FENCED another node has this shard by now')
    end
end

-- A server is `P:{sID}`, a hash: node, until (ms), fence, address, ..., generation of our service's associations, since
-- which generation the service is this one, the number of its newest queue, and what its buckets do not count (assoc_n,
-- assoc_x, rel_n, rel_x); :b is a zset of its buckets that may have queues, by when the last was to come into one (ms).
-- A bucket of its queues is `P:{sID.NN}`, a hash: fence and node of who speaks for the server, its address, the number of
-- its newest queue, and counts (see `account`); queues :q (hash, id -> record), errors :e, those that had an END lately :ends, those that should be active :w:G (zset by number, G: in
-- which generation of associations, 0: none), and these generations, :g. Without such a hash nothing is in it.
-- A record: status, damaged, generation, number, created at, and what only the engine reads.
local HEAD = '>BBI4dd'
local WANTED = 2 -- NEW, PENDING, ACTIVE: the highest of these
local FENCED = 'FENCED another session speaks for this server by now'

-- Also when the lease is over: as long as nobody else took the server it was nobody else's.
local function speaks(server, node, fence)
    local s = call('HMGET', server, 'node', 'fence')
    if s[1] ~= node or s[2] ~= fence then return redis.error_reply(FENCED) end
end

-- The same in a bucket of it, for a while after as well: until a newer session came there, by whoever that is.
local function speaks_in(bucket, node, fence)
    local kept = tonumber(call('HGET', bucket, 'fence') or nil)
    if not kept or kept == tonumber(fence) then return end
    if kept > tonumber(fence) then return redis.error_reply(FENCED) end
    call('HSET', bucket, 'fence', fence, 'node', node)
end

local function xor(a, b)
    local out = {}
    for i = 1, 13, 4 do
        local x = bit.bxor((struct.unpack('>i4', a, i)), (struct.unpack('>i4', b, i)))
        out[#out + 1] = struct.pack('>i4', x)
    end
    return table.concat(out)
end

local NO_IDS = string.rep('\0', 16)

-- What a bucket counts, and the XOR of the MD5s of it: 'assoc', what a service has there, of a generation of associations;
-- 'rel', what was deleted while the service had it, of a service. What was counted of an older one is void.
local function account(bucket, what, of, count, hash)
    local c = call('HMGET', bucket, what .. '_g', what .. '_n', what .. '_x')
    local kept = tonumber(c[1] or 0)
    if kept > of then return end
    if kept < of then c = {of, 0, NO_IDS} end
    call('HSET', bucket, what .. '_g', of, what .. '_n', tonumber(c[2]) + count, what .. '_x', xor(c[3], hash))
end

-- Generation, since which one the service is this one, what of it is not counted in buckets; the server's buckets.
local function service_state(server)
    local s = call('HMGET', server, 'generation', 'since', 'assoc_n', 'assoc_x', 'rel_n', 'rel_x')
    return {tonumber(s[1] or 0), tonumber(s[2] or 0), tonumber(s[3] or 0), s[4] or NO_IDS, tonumber(s[5] or 0),
        s[6] or NO_IDS, call('ZRANGE', server .. ':b', 0, -1)}
end

-- A record's head and what is behind it. One that is cut there is damaged, and nothing else is known of it.
local HEAD_SIZE = 22
local function unpack_head(record)
    if #record < HEAD_SIZE then return 0, 1, 0, 0, 0, '' end
    local status, damaged, generation, number, created = struct.unpack(HEAD, record)
    return status, damaged, generation, number, created, record:sub(23)
end

-- The token that has a queue; nothing: that cannot be read.
local function owner(rest)
    local size = rest:byte(1)
    if size and #rest > size then return rest:sub(2, 1 + size) end
end

local function want(bucket, generation, number, id)
    call('ZADD', bucket .. ':w:' .. generation, text(number), id)
    call('ZADD', bucket .. ':g', generation, generation)
end

local function unwant(bucket, generation, id)
    call('ZREM', bucket .. ':w:' .. generation, id)
end

-- What had an END lately: :ends is a zset of these by when that was stored (ms), each which END it was and the queue's id.
-- There are no more than this, and none for longer.
local ENDS = 1000000
local ENDS_MS = 3600000
local ENDS_SIZE = 12

local function forget_ends(bucket, now)
    local old = call('ZRANGEBYSCORE', bucket .. ':ends', '-inf', text(now - ENDS_MS), 'LIMIT', 0, 1000)
    if #old > 0 then call('ZREM', bucket .. ':ends', unpack(old)) end
end

-- Put behind the others: records of queues, false for each that is not there. `first`, `last`: where in ARGV their ids are.
local function read(bucket, first, last, out)
    for from = first, last, 1000 do
        local some = call('HMGET', bucket .. ':q', unpack(ARGV, from, math.min(from + 999, last)))
        for _, record in ipairs(some) do out[#out + 1] = record end
    end
    return out
end

-- Queues that should be active behind (generation, number), of generations below one, in this order: generation,
-- number, id and record of each.
local function slice(bucket, generation, number, below, limit)
    local out = {}
    for _, g in ipairs(call('ZRANGEBYSCORE', bucket .. ':g', generation, '(' .. below)) do
        local key = bucket .. ':w:' .. g
        local from = tonumber(g) == generation and '(' .. text(number) or '-inf'
        local ids = call('ZRANGEBYSCORE', key, from, '+inf', 'LIMIT', 0, limit - #out)
        for _, id in ipairs(ids) do
            local record = call('HGET', bucket .. ':q', id)
            if record and #record < HEAD_SIZE then -- one that says so is in its place
                record = struct.pack(HEAD, 0, 1, tonumber(g), tonumber(call('ZSCORE', key, id)), 0)
            end
            if record then
                out[#out + 1] = {tonumber(g), id, record}
            else
                call('ZREM', key, id)
            end
        end
        if #ids == 0 and call('EXISTS', key) == 0 then call('ZREM', bucket .. ':g', g) end
        if #out >= limit then break end
    end
    return out
end
