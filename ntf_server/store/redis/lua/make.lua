-- A new store, unless there is one. KEYS: its hash. ARGV: fields and values.
if call('EXISTS', KEYS[1]) == 1 then return 0 end
call('HSET', KEYS[1], unpack(ARGV))
return 1
