-- How far it is filled. KEYS: the store's hash. ARGV: field of the mark, the mark. 0: it has none any more.
if call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
