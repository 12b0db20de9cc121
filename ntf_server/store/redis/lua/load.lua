-- Records of queues. KEYS: server. ARGV: offset ms, node, fence, ids.
local refused = speaks(KEYS[1], ARGV[2], ARGV[3])
if refused then return refused end
local out = {}
for i = 4, #ARGV do
    out[#out + 1] = call('HGET', KEYS[1] .. ':q', ARGV[i])
end
return out
