#!lua flags=allow-oom
-- Tokens of a shard to be forgotten: that never were verified, or are silent. KEYS: shard. ARGV: offset ms, fence, seconds
-- for which each is kept, how many. Gives id and why of each.
local shard, seconds, out = KEYS[1], math.floor(now_ms(ARGV[1]) / 1000), {}
local refused = holds(shard, ARGV[2])
if refused then return refused end
for _, id in ipairs(call('ZRANGEBYSCORE', shard .. ':unproven', '-inf', text(seconds - tonumber(ARGV[3])), 'LIMIT', 0, ARGV[5])) do
    out[#out + 1] = {id, 'unverified'}
end
for _, id in ipairs(call('ZRANGEBYSCORE', shard .. ':active', '-inf', text(seconds - tonumber(ARGV[4])), 'LIMIT', 0, ARGV[5])) do
    local status = call('HGET', shard .. ':t:' .. id, 's')
    out[#out + 1] = {id, (status == 'INVALID' or status == 'EXPIRED') and 'dead' or 'silent'}
end
return out
