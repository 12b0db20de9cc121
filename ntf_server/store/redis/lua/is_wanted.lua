-- Whether anything in buckets should be active. KEYS: buckets. ARGV: none. Gives 1 or 0, how many subscriptions they have.
local wanted, count = 0, 0
for _, bucket in ipairs(KEYS) do
    for _, g in ipairs(call('ZRANGE', bucket .. ':g', 0, -1)) do
        if call('EXISTS', bucket .. ':w:' .. g) == 1 then wanted = 1 end
    end
    count = count + call('HLEN', bucket .. ':q')
end
return {wanted, count}
