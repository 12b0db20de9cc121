-- All is there: nodes may start. KEYS: the store's hash, its clock. ARGV: offset ms, field of the mark, when a node ran
-- last, or would have, in ms, who fills it. 0: another one does.
local f = call('HMGET', KEYS[1], ARGV[2], 'filler')
if not f[1] then return 1 end -- the answer of before did not arrive
if f[2] ~= ARGV[4] then return 0 end
call('HSET', KEYS[2], 'last', text(math.min(tonumber(ARGV[3]), now_ms(ARGV[1]))))
call('HDEL', KEYS[1], ARGV[2], 'filler', 'filler_until')
return 1
