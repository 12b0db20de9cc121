-- How far it is filled. KEYS: the store's hash. ARGV: field of the mark, the mark, who fills it.
-- 0: another one does, or did, and ended.
if call('HEXISTS', KEYS[1], ARGV[1]) == 0 or call('HGET', KEYS[1], 'filler') ~= ARGV[3] then return 0 end
call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
