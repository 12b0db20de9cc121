-- Whether anything on a server should be active. KEYS: server. ARGV: none. Gives 1 or 0, how many subscriptions it has.
return {is_wanted(KEYS[1]) and 1 or 0, call('HLEN', KEYS[1] .. ':q')}
