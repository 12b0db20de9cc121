-- KEYS: server. ARGV: offset ms, node, fence, prefix, what stands for any, how many are kept.
local server = KEYS[1]
local refused = speaks(server, ARGV[2], ARGV[3])
if refused then return refused end
local kept = {ARGV[4]}
for prefix in (call('HGET', server, 'prefixes') or ''):gmatch('%S+') do
    if prefix == ARGV[4] then return 0 end
    if prefix ~= ARGV[5] and #kept < tonumber(ARGV[6]) then kept[#kept + 1] = prefix end
end
call('HSET', server, 'prefixes', table.concat(kept, ' '))
call('HSETNX', server, 'proven', text(math.floor(now_ms(ARGV[1]) / 1000)))
return 1
