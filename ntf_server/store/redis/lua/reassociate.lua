-- No association holds from now on. KEYS: server. ARGV: offset ms, node, fence. Gives its service's state.
local server = KEYS[1]
local refused = speaks(server, ARGV[2], ARGV[3])
if refused then return refused end
local generation = tonumber(call('HGET', server, 'generation') or 0) + 1
call('HSET', server, 'generation', generation, 'assoc_n', 0, 'assoc_x', NO_IDS)
return service_state(server)
