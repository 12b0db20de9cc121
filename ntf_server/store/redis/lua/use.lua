#!lua flags=allow-oom
-- Whether a server has queues. KEYS: it. ARGV: offset ms, '1' it has, '' it has none.
if ARGV[2] == '1' then
    call('HDEL', KEYS[1], 'unused')
elseif call('EXISTS', KEYS[1]) == 1 then
    call('HSETNX', KEYS[1], 'unused', text(math.floor(now_ms(ARGV[1]) / 1000)))
end
return 0
