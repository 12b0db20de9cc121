-- What scripts share. A shard of tokens is the key of its lease, `P:{tNN}`; all that is in it is named after that:
--   :t:ID    hash, a token        :n:ID  hash, queue -> newest notification   :u:ID  zset, queues with an unsent one
--   :h:ID    zset, queues whose newest went out last                          :q:ID  set, its queues
--   :due:L   zset, tokens of a lane by when they are due (ms)   :lanes:P  zset, lanes of a provider by their first
--   :taken   hash, tokens that the holder's memory has, and by which of its calls           
--   :doubts  zset, tokens and queues that a command began with, by when (ms)   :gone  set, tokens that are not yet cleared
--   :all :unproven :active :period :codes :checks :waiting  zsets of tokens, by their times
-- Fields of a token: s status, w why, g registration, ra registered at, v code due, c code, k check due, p period,
-- pa period began, aa active at, o proven, l lane, r record (sealed), x damaged, n tries that failed, i push id,
-- ia pushed at, e ended, er its reason, d delivered at. Seconds, but for what is called ms.
-- A script may end in the middle: while a slot moves to another server what is there already cannot be had here. It is
-- done again then. So what makes something known is written last, and what is there already is no reason to stop.
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
    call('ZADD', shard .. ':due:' .. lane, 'LT', text(at), id)
    head(shard, lane)
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

-- When anything of it is due, in ms; nothing if nothing is. `t`: its fields s, v, k, x, if they are known.
local function pending(shard, id, now, t)
    t = t or call('HMGET', shard .. ':t:' .. id, 's', 'v', 'k', 'x')
    if not t[1] or t[4] then return nil end
    if t[1] == 'ACTIVE' and (t[3] or call('ZCARD', shard .. ':u:' .. id) > 0) then return now end
    return t[2] and math.max(now, tonumber(t[2]) * 1000) or nil
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

-- A notification: fence, number, received at, sent (0 no, 1 yes, 2 its time is over), and what only the engine reads.
local function sent_as(value, how)
    return value:sub(1, 20) .. string.char(how) .. value:sub(22)
end

-- Of what is kept for a queue, or nothing: fence, number, received at, how it was sent. What is cut is older than all, and over.
local function stamp(value)
    if not value or #value < 21 then return 0, 0, 0, 2 end
    return struct.unpack('>dI4dB', value)
end

-- Give up what of it arrived so long ago: how many.
local function expire(shard, id, oldest, limit)
    local unsent, values, count = shard .. ':u:' .. id, shard .. ':n:' .. id, 0
    for _, queue in ipairs(call('ZRANGE', unsent, 0, limit - 1)) do
        local value = call('HGET', values, queue)
        local _, _, received = stamp(value)
        if received <= oldest then
            if received > 0 then
                call('HSET', values, queue, sent_as(value, 2))
            else
                call('HDEL', values, queue)
            end
            call('ZREM', unsent, queue)
            count = count + 1
        end
    end
    return count
end

-- The fields that `content` looks at.
local function fields(shard, id)
    return call('HMGET', shard .. ':t:' .. id, 's', 'v', 'k', 'x', 'l', 'g', 'ra', 'r', 'c', 'n', 'i', 'd')
end

-- What is to be pushed to a token that memory has, for whoever claims it (`t`: its fields): kind (0 code, 1 messages, 2 check), since,
-- more behind it, expired codes, checks and notifications, the token's fields, then queue and value of each
-- notification. Kind -1: nothing, and memory has it no more.
local function content(shard, id, now, code_ttl, message_ttl, t)
    local key, seconds = shard .. ':t:' .. id, math.floor(now / 1000)
    local late_codes, late_checks, late = 0, 0, 0
    local code, check = tonumber(t[2] or nil), tonumber(t[3] or nil)
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
    local active = t[1] == 'ACTIVE'
    local waits = code and code > seconds
    local kind, since, more, entries = -1, 0, false, {}
    if t[1] and not t[4] then
        if code and not waits then
            kind, since, more = 0, code, active
        elseif active then
            local oldest = tonumber(call('ZSCORE', shard .. ':waiting', id) or nil)
            if not oldest or oldest <= seconds - message_ttl then
                late = expire(shard, id, seconds - message_ttl, 2000)
            end
            local unsent = call('ZRANGE', shard .. ':u:' .. id, 0, 6)
            if #unsent > 0 then
                kind, more = 1, #unsent > 6 or check or waits
                for i = 1, math.min(#unsent, 6) do entries[i] = unsent[i] end
                if #entries < 6 then
                    for _, queue in ipairs(call('ZRANGE', shard .. ':h:' .. id, -(6 - #entries), -1)) do
                        entries[#entries + 1] = queue
                    end
                end
            elseif check then
                kind, since, more = 2, check, waits
            end
        end
    end
    if kind == -1 then
        call('HDEL', shard .. ':taken', id)
        if t[1] and waits then due(shard, id, t[5], code * 1000) end
    end
    local out = {id, kind, since, more and 1 or 0, late_codes, late_checks, late}
    if kind == -1 then return out end
    out[8] = {t[5], t[6], t[7], t[8], kind == 0 and t[9] or '', t[10] or '0', t[10] and t[10] ~= '0' and t[11] or '',
        t[12] and 1 or 0}
    out[9] = call('SCARD', shard .. ':q:' .. id)
    for i, queue in ipairs(entries) do
        out[8 + 2 * i] = queue
        out[9 + 2 * i] = call('HGET', shard .. ':n:' .. id, queue)
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
-- its newest queue, and counts (see `account`); queues :q (hash, id -> record), errors :e, those that should be active :w:G (zset by number, G: in
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
