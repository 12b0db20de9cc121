-- How many are released beside those that buckets count. KEYS: server. ARGV: offset ms, node, fence, how many that were
-- and their hash, how many it is to be and their hash. 0: it was changed meanwhile.
local server = KEYS[1]
local refused = speaks(server, ARGV[2], ARGV[3])
if refused then return refused end
local s = call('HMGET', server, 'rel_n', 'rel_x')
local n, x = s[1] or '0', s[2] or NO_IDS
if n == ARGV[6] and x == ARGV[7] then return 1 end -- it is done
if n ~= ARGV[4] or x ~= ARGV[5] then return 0 end
call('HSET', server, 'rel_n', ARGV[6], 'rel_x', ARGV[7])
return 1
