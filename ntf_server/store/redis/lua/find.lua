-- A subscription. KEYS: bucket. ARGV: notifier id. Gives record, error, the server's address.
local record = call('HGET', KEYS[1] .. ':q', ARGV[1])
return {record, call('HGET', KEYS[1] .. ':e', ARGV[1]) or '', call('HGET', KEYS[1], 'address')}
