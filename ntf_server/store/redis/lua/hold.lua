#!lua flags=allow-oom
-- Take or keep shards under leases. KEYS: shards. ARGV: offset ms, node, ms that a lease lasts, then of each shard the
-- fence under which the node has it, '' to take it if nobody has it, or '-' to take it only if nobody had it for a lease.
-- Gives for each shard its fence, '' if another node has it, or '-' if nobody has it or who has it renews it no more.
-- It uses no other keys.
local now, out = now_ms(ARGV[1]), {}
local until_ms = text(now + tonumber(ARGV[3]))
for i, shard in ipairs(KEYS) do
    local lease = call('HMGET', shard, 'node', 'fence', 'until')
    local given = ARGV[3 + i]
    local over = tonumber(lease[3] or 0) + (given == '-' and tonumber(ARGV[3]) or 0) <= now
    if given ~= '' and given ~= '-' and lease[1] == ARGV[2] and lease[2] == given then
        call('HSET', shard, 'until', until_ms)
        out[i] = given
    elseif over or (given ~= '-' and (lease[1] == '' or lease[1] == ARGV[2])) then
        local t = call('TIME')
        local fence = math.max(tonumber(lease[2] or 0) + 1, tonumber(t[1]) * 1000000 + tonumber(t[2]))
        call('HSET', shard, 'node', ARGV[2], 'fence', text(fence), 'until', until_ms)
        out[i] = text(fence)
    else
        out[i] = tonumber(lease[3]) - now < tonumber(ARGV[3]) / 2 and '-' or ''
    end
end
return out
