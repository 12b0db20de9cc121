#!lua flags=allow-oom
-- Of the registrations of a device one is verified: it alone has the device from now on. The others are kept as `-ID`
-- until they are deleted: this may be done twice, and who asked may die.
-- KEYS: device. ARGV: verify key, token id, bytes of an attempt. Gives ids and attempts of the others; nothing if it has
-- the device no more itself.
-- It uses no other keys.
local device, mine, others = KEYS[1], ARGV[1], {}
local function id(lead) return lead and lead:sub(1, -1 - tonumber(ARGV[3])) end
if id(call('HGET', device, mine)) ~= ARGV[2] then return false end
local pairs_ = call('HGETALL', device)
for i = 1, #pairs_, 2 do
    local field, lead = pairs_[i], pairs_[i + 1]
    if field ~= mine then
        call('HDEL', device, field)
        if id(lead) ~= ARGV[2] then
            call('HSET', device, '-' .. id(lead), lead)
            others[#others + 1] = lead
        end
    end
end
return others
