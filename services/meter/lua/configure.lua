-- configure: state and limits of a key and of its account, in force for every open and extend after it.
-- An older revision never overwrites a newer one. Totals are taken only when this epoch has none yet, and only
-- from a snapshot of this epoch; later only what has come past Redis since is added, whatever the revision.
-- KEYS: 1 e epoch, 2 k key, 3 i index
-- ARGV: 1 known_epoch, 2 revision, 3 used_nanos, 4 day, 5 used_day_nanos, 6 month, 7 used_month_nanos,
--       8 key_id, 9 account_id, 10 limits (packed, see read_key), 11 late_nanos (the part of 3 that came past
--       Redis, in all), 12 snapshot_epoch (0: not known)
-- Returns {`OK`, revision}: the revision in force; 0: the snapshot is of an older epoch  {`FENCE`, cause, seen_epoch}

local epoch, fence = read_epoch(KEYS[1], tonumber(ARGV[1]))
if not epoch then return fence end
local stored = redis.call('HMGET', KEYS[2], 'epoch', 'revision', 'late_nanos')
local known = tonumber(stored[1] or '0') == epoch
local late = tonumber(ARGV[11])
if known and late > tonumber(stored[3] or '0') then
  local limits = read_key(KEYS[2], epoch)
  local more = late - tonumber(stored[3] or '0')
  local number, day, used_day, month, used_month = read_days(limits, now_ms())
  redis.call('HSET', KEYS[2], 'used_nanos', int(limits.used + more), 'late_nanos', int(late),
    'days', table.concat({int(number), day, int(used_day + more), month, int(used_month + more)}, '|'))
end
if known and tonumber(stored[2]) > tonumber(ARGV[2]) then return {'OK', stored[2]} end
if not known then
  local snapshot_epoch = tonumber(ARGV[12])
  if snapshot_epoch > 0 and snapshot_epoch < epoch then return {'OK', '0'} end
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[2], 'epoch', int(epoch), 'revision', ARGV[2], 'limits', ARGV[10],
    'used_nanos', ARGV[3], 'held_nanos', '0', 'days', table.concat({'0', ARGV[4], ARGV[5], ARGV[6], ARGV[7]}, '|'),
    'account', ARGV[9], 'late_nanos', ARGV[11])
  redis.call('HSET', KEYS[3], 'k:' .. ARGV[8], int(epoch))
else
  redis.call('HSET', KEYS[2], 'revision', ARGV[2], 'limits', ARGV[10])
end
return {'OK', ARGV[2]}
