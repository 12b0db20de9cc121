-- Change a memo, unless somebody has changed it since it was read.
-- KEYS: a memo, which begins with the stamp of who wrote it, 8 bytes. ARGV: offset ms, the stamp that was read (empty:
-- there was none), what it is to be (empty: it is to be gone), ms for which it is kept.
-- Gives nothing if it is done, else what `recall` gives. Twice it is done once: no two writes have the same stamp.
-- It uses no other keys.
local memo, read, new = KEYS[1], ARGV[2], ARGV[3]
local value = call('GET', memo)
local stamp = value and value:sub(1, 8) or ''
if stamp == new:sub(1, 8) then return false end
if stamp ~= read then return {now_ms(ARGV[1]), value} end
if new == '' then
    call('DEL', memo)
else
    call('SET', memo, new, 'PX', ARGV[4])
end
return false
