-- Its service's state. KEYS: server. ARGV: offset ms, node, fence.
local refused = speaks(KEYS[1], ARGV[2], ARGV[3])
if refused then return refused end
return service_state(KEYS[1])
