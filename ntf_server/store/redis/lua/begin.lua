-- The session is a service's, or nobody's. KEYS: server. ARGV: offset ms, node, fence, service id or ''.
-- Gives the generation of its associations (0: no service), whether the service is another, and its state.
local server = KEYS[1]
local refused = speaks(server, ARGV[2], ARGV[3])
if refused then return refused end
local before = call('HGET', server, 'service') or ''
if before ~= ARGV[4] then
    call('HSET', server, 'service', ARGV[4], 'rel_n', 0, 'rel_x', NO_IDS, 'assoc_n', 0, 'assoc_x', NO_IDS)
    call('HINCRBY', server, 'generation', 1)
end
local generation = tonumber(call('HGET', server, 'generation') or 0)
return {ARGV[4] ~= '' and generation or 0, before ~= '' and before ~= ARGV[4] and 1 or 0, service_state(server)}
