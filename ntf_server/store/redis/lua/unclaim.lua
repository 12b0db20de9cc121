#!lua flags=allow-oom
-- A pair of device token and verify key is this attempt's no more. KEYS: device. ARGV: verify key, token id and attempt.
-- It uses no other keys.
if call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then call('HDEL', KEYS[1], ARGV[1]) end
return 0
