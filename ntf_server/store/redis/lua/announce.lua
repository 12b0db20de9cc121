#!lua flags=allow-oom
-- Whether all that should be is confirmed in a session. KEYS: server. ARGV: offset ms, node, fence, '1' or ''.
local refused = speaks(KEYS[1], ARGV[2], ARGV[3])
if refused then return refused end
call('HSET', KEYS[1], 'whole', ARGV[4] == '1' and ARGV[3] or '')
return 0
