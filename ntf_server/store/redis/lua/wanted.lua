-- Queues that should be active, whoever asks. KEYS: server. ARGV: generation and number behind which they are, how many.
-- Gives the address, then generation, id, record of each.
return {call('HGET', KEYS[1], 'address'), slice(KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), '+inf', tonumber(ARGV[3]))}
