-- KEYS: server. ARGV: offset ms, node, fence, how many are released, hash of these or '' if it is not known.
local server, count = KEYS[1], tonumber(ARGV[4])
local refused = speaks(server, ARGV[2], ARGV[3])
if refused then return refused end
local s = service_state(server)
local new = ARGV[5]
if new == '' then new = count > 0 and s[4] or NO_IDS end
call('HSET', server, 'assoc_n', s[1] - s[3] + count, 'assoc_x', xor(xor(s[2], s[4]), new), 'rel_n', count, 'rel_x', new)
return 0
