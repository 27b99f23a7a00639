-- configure: state and limits of a key and of its account, in force for every open and extend after it.
-- An older revision never overwrites a newer one. Totals are taken only when this epoch has none yet.
-- KEYS: 1 e epoch, 2 k key, 3 i index
-- ARGV: 1 known_epoch, 2 revision, 3 used_nanos, 4 day, 5 used_day_nanos, 6 month, 7 used_month_nanos,
--       8 key_id, 9 account_id, 10 limits (packed, see read_key)
-- Returns {`OK`, revision}: the revision in force  {`FENCE`, cause, seen_epoch}

local epoch, fence = read_epoch(KEYS[1], tonumber(ARGV[1]))
if not epoch then return fence end
local stored = redis.call('HMGET', KEYS[2], 'epoch', 'revision')
local known = tonumber(stored[1] or '0') == epoch
if known and tonumber(stored[2]) > tonumber(ARGV[2]) then return {'OK', stored[2]} end
if not known then
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[2], 'epoch', int(epoch), 'revision', ARGV[2], 'limits', ARGV[10],
    'used_nanos', ARGV[3], 'held_nanos', '0', 'days', table.concat({'0', ARGV[4], ARGV[5], ARGV[6], ARGV[7]}, '|'),
    'account', ARGV[9])
  redis.call('HSET', KEYS[3], 'k:' .. ARGV[8], int(epoch))
else
  redis.call('HSET', KEYS[2], 'revision', ARGV[2], 'limits', ARGV[10])
end
return {'OK', ARGV[2]}
