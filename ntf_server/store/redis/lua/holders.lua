-- Whether servers are held. KEYS: servers. ARGV: offset ms, ms that a lease lasts.
-- Gives for each by which node, as `=NODE`, or 'old' if its holder renews it no more, 'new' if nobody ever held it, 'free',
-- or 'late': it is free for longer than a lease.
local now, lease, out = now_ms(ARGV[1]), tonumber(ARGV[2]), {}
for i, server in ipairs(KEYS) do
    local s = call('HMGET', server, 'node', 'until')
    local till = tonumber(s[2] or nil)
    if not till then
        out[i] = 'new'
    elseif s[1] and s[1] ~= '' and till > now then
        out[i] = till - now >= lease / 2 and '=' .. s[1] or 'old'
    else
        out[i] = till + lease <= now and 'late' or 'free'
    end
end
return out
