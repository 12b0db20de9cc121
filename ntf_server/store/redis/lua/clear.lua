#!lua flags=allow-oom
-- Buckets without queues go, unless they count something. KEYS: buckets. ARGV: offset ms, generation of the server's
-- associations, since which one its service is this one, '1': whatever they count.
-- Gives of each: 0, it has queues; 1, it counts something; 2, it is gone.
local now, out = now_ms(ARGV[1]), {}
for n, bucket in ipairs(KEYS) do
    local c = call('HMGET', bucket, 'assoc_g', 'assoc_n', 'rel_g', 'rel_n')
    local counts = (c[1] == ARGV[2] and c[2] ~= '0') or (c[3] == ARGV[3] and c[4] ~= '0')
    forget_ends(bucket, now)
    if call('EXISTS', bucket .. ':q') == 1 then
        out[n] = 0
    elseif counts and ARGV[4] ~= '1' then
        out[n] = 1
    else
        call('DEL', bucket .. ':e', bucket .. ':g', bucket .. ':ends', bucket)
        out[n] = 2
    end
end
return out
