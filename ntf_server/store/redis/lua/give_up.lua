-- KEYS: server. ARGV: offset ms, node, fence, status, error, how many. Gives how many were given up.
local server = KEYS[1]
local refused = speaks(server, ARGV[2], ARGV[3])
if refused then return refused end
local items = slice(server, 0, -1, '+inf', tonumber(ARGV[6]))
for _, item in ipairs(items) do
    local _, damaged, generation, number, created, rest = unpack_head(item[3])
    unwant(server, generation, item[2])
    call('HSET', server .. ':q', item[2], struct.pack(HEAD, tonumber(ARGV[4]), damaged, 0, number, created) .. rest)
    call('HSET', server .. ':e', item[2], ARGV[5])
end
return #items
