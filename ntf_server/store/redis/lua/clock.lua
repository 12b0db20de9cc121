#!lua flags=allow-oom
-- The store's clock: what is added to the server's time so that it never jumps. KEYS: it. ARGV: ms that the asking node
-- adds beside it (see `now_ms`), version that the node knows, ms by which it saw the server's clock set, who just started or ''.
-- Gives offset in ms, version, and for who just started by how many seconds it is later than when a node ran last: to
-- the same one again the same.
-- It uses no other keys.
local starts = ARGV[4] ~= ''
local c = call('HMGET', KEYS[1], 'offset', 'version', 'last', 'started', 'gap')
local offset, version = tonumber(c[1] or 0), tonumber(c[2] or 0)
if ARGV[3] ~= '0' and ARGV[2] == text(version) then
    offset, version = offset - tonumber(ARGV[3]), version + 1
end
local now, gap = now_ms(ARGV[1]) + offset, 0
if starts and c[4] == ARGV[4] then
    gap = tonumber(c[5])
elseif starts and c[3] then
    gap = math.max(0, math.floor((now - tonumber(c[3])) / 1000))
end
if starts and c[3] and tonumber(c[3]) > now then
    offset, version = offset + tonumber(c[3]) - now, version + 1
    now = tonumber(c[3])
end
call('HSET', KEYS[1], 'offset', text(offset), 'version', text(version), 'last', text(math.max(now, tonumber(c[3] or 0))))
if starts then call('HSET', KEYS[1], 'started', ARGV[4], 'gap', text(gap)) end
return {text(offset), text(version), gap}
