-- Spend of a kind of budget: of an address's own (several: of IPv6 networks), then of its group's, as `Admission._spend`
-- and `Rate.spend` do it in one process.
-- KEYS: hash of the kind: who -> when all that he spent is paid for, in ms, by pace. ARGV: offset ms, how many are spent,
-- longest delay ms, paces of all, paces of who asks for little, then who and his paces, several times or never. A pace:
-- at once, per ms. Gives the delays by address and by group, ms.
-- It uses no other keys.
-- Twice it is spent twice, which delays: by what is asked for at once at this pace, and never for longer than `longest`.
-- What is full again is as good as not there: each call looks at more than it adds, so most of it is soon deleted.
local spent, now = KEYS[1], now_ms(ARGV[1])
local n, longest, total, modest = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local last = 0

local function spend(who, paces, if_there)
    local paid, out, longest_wait = call('HGET', spent, who) or '', {}, 0
    for i = 1, #paces / 16 do
        local at_once, per_ms = struct.unpack('>dd', paces, 16 * i - 15)
        local ahead = at_once / per_ms
        local at = #paid >= 8 * i and math.max(now, (struct.unpack('>d', paid, 8 * i - 7))) or now
        local wait = math.min(at + n / per_ms - ahead - now, longest)
        out[i] = struct.pack('>d', now + ahead + wait)
        last = math.max(last, ahead + wait)
        longest_wait = math.max(longest_wait, math.floor(wait + 0.5))
    end
    if if_there and longest_wait > 0 then return nil end
    call('HSET', spent, who, table.concat(out))
    return longest_wait
end

local own, group, all = 0, 's', 0
for i = 6, #ARGV, 2 do
    own = math.max(own, spend(ARGV[i], ARGV[i + 1]))
end
if own == 0 then
    if #ARGV > 6 then group = spend(ARGV[#ARGV - 1] .. 'm', modest, true) and 'm' or 'o' end
    all = spend(group, total)
end
local some = call('HRANDFIELD', spent, 8, 'WITHVALUES')
for i = 1, #some, 2 do
    local full = true
    for j = 1, #some[i + 1], 8 do full = full and struct.unpack('>d', some[i + 1], j) <= now end
    if full then call('HDEL', spent, some[i]) end
end
local kept = math.ceil(last)
if call('PTTL', spent) < kept then call('PEXPIRE', spent, kept) end
return {own, all}
