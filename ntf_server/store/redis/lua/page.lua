-- Queues that should be active, in order. KEYS: buckets. ARGV: node, fence or '' for whoever asks, the generation that
-- they are below, how many, then of each bucket generation and number behind which they are.
-- Gives of each bucket a list of generation, id, record.
local out, left = {}, tonumber(ARGV[4])
for n, bucket in ipairs(KEYS) do
    local refused = ARGV[2] ~= '' and speaks_in(bucket, ARGV[1], ARGV[2])
    if refused then return refused end
    out[n] = left > 0 and slice(bucket, tonumber(ARGV[3 + 2 * n]), tonumber(ARGV[4 + 2 * n]), ARGV[3], left) or {}
    left = left - #out[n]
end
return out
