-- The session is a service's, or nobody's. KEYS: server. ARGV: offset ms, node, fence, service id or ''.
-- Gives whether the service is another, and its state.
local server = KEYS[1]
local refused = speaks(server, ARGV[2], ARGV[3])
if refused then return refused end
local s = call('HMGET', server, 'service', 'generation')
local before = s[1] or ''
if before ~= ARGV[4] then
    local generation = tonumber(s[2] or 0) + 1
    call('HSET', server, 'service', ARGV[4], 'generation', generation, 'since', generation, 'rel_n', 0, 'rel_x', NO_IDS,
        'assoc_n', 0, 'assoc_x', NO_IDS)
end
return {before ~= '' and before ~= ARGV[4] and 1 or 0, service_state(server)}
