-- Subscriptions of a bucket, counted. KEYS: bucket. ARGV: cursor of HSCAN, about how many, the generation of our service's
-- associations. Gives where to go on ('0': that was all), how many of those that should be active the service has, then
-- of each status how many: 0 NEW, as the records have them, and 255 damaged.
local found = call('HSCAN', KEYS[1] .. ':q', ARGV[1], 'COUNT', ARGV[2])
local out, statuses, associated = {found[1], 0}, {}, 0
for i = 2, #found[2], 2 do
    local status, damaged, generation = unpack_head(found[2][i])
    if damaged ~= 0 then status = 255 end
    statuses[status] = (statuses[status] or 0) + 1
    if status <= WANTED and generation > 0 and generation == tonumber(ARGV[3]) then associated = associated + 1 end
end
out[2] = associated
for status, count in pairs(statuses) do
    out[#out + 1], out[#out + 2] = status, count
end
return out
