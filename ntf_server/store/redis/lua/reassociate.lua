-- No association holds from now on. KEYS: server. ARGV: offset ms, node, fence. Gives the generation, and the state.
local server = KEYS[1]
local refused = speaks(server, ARGV[2], ARGV[3])
if refused then return refused end
local s = service_state(server)
call('HSET', server, 'assoc_n', s[3], 'assoc_x', s[4])
return {call('HINCRBY', server, 'generation', 1), service_state(server)}
