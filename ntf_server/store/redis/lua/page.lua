-- Queues that should be active, in order. KEYS: server. ARGV: offset ms, node, fence, generation and number behind which
-- they are, the generation that they are below, how many. Gives generation, id, record of each.
local refused = speaks(KEYS[1], ARGV[2], ARGV[3])
if refused then return refused end
return slice(KEYS[1], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7]))
