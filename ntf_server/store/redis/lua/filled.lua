-- All is there: nodes may start. KEYS: the store's hash, its clock. ARGV: offset ms, field of the mark, when a node ran
-- last, or would have, in ms.
call('HSET', KEYS[2], 'last', text(math.min(tonumber(ARGV[3]), now_ms(ARGV[1]))))
call('HDEL', KEYS[1], ARGV[2])
return 0
