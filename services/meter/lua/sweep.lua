-- sweep: look at a session whose lease is over. First it becomes `orphaned` (its money stays held); when the
-- grace is over too, the caller gets what it needs to settle or release it.
-- KEYS: 1 e epoch, 2 s session, 3 x leases
-- ARGV: 1 known_epoch, 2 session_id, 3 grace_ms
-- Returns {`WAIT`}: nothing to do yet  {`ORPHANED`, held_nanos}
--         {`DUE`, account, key, epoch, seq, held_nanos, used_tokens, used_nanos, record}
--         {`GONE`}: the session is unknown or ended, its lease entry is removed  {`FENCE`, cause, seen_epoch}

local epoch, fence = read_epoch(KEYS[1], tonumber(ARGV[1]))
if not epoch then return fence end
local session = read_fields(KEYS[2], {'state', 'lease_ends_at_ms', 'account', 'key', 'epoch', 'seq',
  'held_nanos', 'used_tokens', 'used_nanos', 'record'})
if session.state ~= 'held' and session.state ~= 'orphaned' then
  redis.call('ZREM', KEYS[3], ARGV[2])
  return {'GONE'}
end
local now, lease_end = now_ms(), tonumber(session.lease_ends_at_ms)
if now < lease_end then return {'WAIT'} end
local due_at = lease_end + tonumber(ARGV[3])
if session.state == 'held' then
  redis.call('HSET', KEYS[2], 'state', 'orphaned')
  redis.call('ZADD', KEYS[3], int(due_at), ARGV[2])
  return {'ORPHANED', session.held_nanos}
end
if now < due_at then return {'WAIT'} end
return {'DUE', session.account, session.key, session.epoch, session.seq, session.held_nanos,
  session.used_tokens or '0', session.used_nanos or '0', session.record}
