-- release: end a session that costs nothing; its whole hold goes back. An unknown session leaves a
-- tombstone that refuses its late open.
-- KEYS: 1 e epoch, 2 a account, 3 k key, 4 s session, 5 x leases, 6 c concurrency
-- ARGV: 1 known_epoch, 2 session_id, 3 seq, 4 account_id (of KEYS[2]; empty: the session was unknown),
--       5 by: `edge`, or `sweep` (only when still orphaned at seq - 1)
-- Returns {`OK`, state}  {`ENDED`, state}: an earlier call ended it  {`AGAIN`}: another account's keys are needed
--         {`SKIP`}: (sweep) not orphaned any more  {`FENCE`, cause, seen_epoch}

local epoch, fence = read_epoch(KEYS[1], tonumber(ARGV[1]))
if not epoch then return fence end
local session = read_fields(KEYS[4], {'state', 'seq', 'account', 'epoch', 'held_nanos'})
if ARGV[5] == 'sweep' and (session.state ~= 'orphaned' or tonumber(session.seq) + 1 ~= tonumber(ARGV[3])) then
  return {'SKIP'}
end
if session.state == 'settled' or session.state == 'released' then return {'ENDED', session.state} end
if session.state then
  if session.account ~= ARGV[4] then return {'AGAIN'} end
  local held = tonumber(session.held_nanos)
  if tonumber(session.epoch) == epoch then
    local money = read_money(KEYS[2], epoch)
    if not money.present then return {'FENCE', 'account_lost', int(epoch)} end
    redis.call('HSET', KEYS[2], 'held_nanos', int(money.held - held))
    local limits = redis.call('HMGET', KEYS[3], 'epoch', 'held_nanos')
    if tonumber(limits[1] or '0') == epoch then
      redis.call('HSET', KEYS[3], 'held_nanos', int(tonumber(limits[2]) - held))
    end
  end
  redis.call('ZREM', KEYS[5], ARGV[2])
  redis.call('ZREM', KEYS[6], ARGV[2])
  redis.call('DEL', KEYS[4])
end
redis.call('HSET', KEYS[4], 'state', 'released', 'seq', ARGV[3], 'ended_by', ARGV[5])
redis.call('PEXPIRE', KEYS[4], '900000')
return {'OK', 'released'}
