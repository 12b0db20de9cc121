-- KEYS: server. ARGV: offset ms.
if call('HDEL', KEYS[1], 'proven') == 1 then
    call('HDEL', KEYS[1], 'prefixes')
    call('HSET', KEYS[1], 'tried', text(math.floor(now_ms(ARGV[1]) / 1000)))
end
return 0
