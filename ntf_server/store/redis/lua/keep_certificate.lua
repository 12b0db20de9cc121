-- The first certificate stays. KEYS: server. ARGV: offset ms, address, chain, sealed key, the sealed key that cannot be
-- read, or ''. Gives chain and sealed key that are kept.
local server = KEYS[1]
local s = call('HMGET', server, 'chain', 'key', 'address')
if s[1] and s[2] ~= ARGV[5] then return {s[1], s[2]} end
if not s[3] then
    local seconds = text(math.floor(now_ms(ARGV[1]) / 1000))
    call('HSET', server, 'address', ARGV[2], 'tried', seconds, 'unused', seconds)
end
call('HSET', server, 'chain', ARGV[3], 'key', ARGV[4])
return {ARGV[3], ARGV[4]}
