-- Buckets of a server that may have queues. KEYS: server. ARGV: none.
return call('ZRANGE', KEYS[1] .. ':b', 0, -1)
