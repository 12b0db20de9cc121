#!lua flags=allow-oom
-- The store's clock: what is added to the server's time so that it never jumps. KEYS: it. ARGV: ms that the asking node
-- adds beside it (see `now_ms`), version that the node knows, ms by which it saw the server's clock set, '1' if the node just started.
-- Gives offset in ms, version, and for a node that just started by how many seconds it is later than when a node ran last.
-- It uses no other keys.
local c = call('HMGET', KEYS[1], 'offset', 'version', 'last')
local offset, version = tonumber(c[1] or 0), tonumber(c[2] or 0)
if ARGV[3] ~= '0' and ARGV[2] == text(version) then
    offset, version = offset - tonumber(ARGV[3]), version + 1
end
local now = now_ms(ARGV[1]) + offset
local gap = ARGV[4] == '1' and c[3] and math.max(0, math.floor((now - tonumber(c[3])) / 1000)) or 0
if ARGV[4] == '1' and c[3] and tonumber(c[3]) > now then
    offset, version = offset + tonumber(c[3]) - now, version + 1
    now = tonumber(c[3])
end
call('HSET', KEYS[1], 'offset', text(offset), 'version', text(version), 'last', text(math.max(now, tonumber(c[3] or 0))))
return {text(offset), text(version), gap}
