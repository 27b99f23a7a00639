-- settle: end a session and charge it, once; the rest of its hold goes back; one outbox entry.
-- KEYS: 1 e epoch, 2 a account, 3 k key, 4 s session, 5 x leases, 6 c concurrency, 7 o outbox
-- ARGV: 1 known_epoch, 2 session_id, 3 seq, 4 ref_epoch, 5 cost_nanos, 6 payload (JSON of the usage record),
--       7 tokens (all classes, for the tokens-per-minute window), 8 account_id,
--       9 by: `edge`; `sweep` (only when still orphaned at seq - 1); `ledger`, `ledger_sweep`: the ledger has
--         charged it already after STALE or DIRECT: only the key's use is noted, and that it is settled
-- Returns {`OK`, loan_nanos}: charged now
--         {`ENDED`, state}: an earlier call ended it, nothing is charged
--         {`STALE`, held_nanos}: of an older epoch: the ledger must charge that epoch's escrow
--         {`DIRECT`}: unknown, or swept before: the ledger decides
--         {`SKIP`}: (sweep) not orphaned any more
--         {`FENCE`, cause, seen_epoch}

local epoch, fence = read_epoch(KEYS[1], tonumber(ARGV[1]))
if not epoch then return fence end
local state, last_seq, session_held, plan, ended_by =
  unpack(redis.call('HMGET', KEYS[4], 'state', 'seq', 'held_nanos', 'plan', 'ended_by'))
local by_sweep = ARGV[9] == 'sweep'
if by_sweep and (state ~= 'orphaned' or tonumber(last_seq) + 1 ~= tonumber(ARGV[3])) then
  return {'SKIP'}
end
local function note_use(limits, now, cost, held)
  local number, day, used_day, month, used_month = read_days(limits, now)
  redis.call('HSET', KEYS[3], 'used_nanos', int(limits.used + cost), 'held_nanos', int(limits.held - held),
    'days', table.concat({int(number), day, int(used_day + cost), month, int(used_month + cost)}, '|'))
end
local function end_session(ended_by_now)
  redis.call('ZREM', KEYS[5], ARGV[2])
  redis.call('DEL', KEYS[4])
  redis.call('HSET', KEYS[4], 'state', 'settled', 'seq', ARGV[3], 'ended_by', ended_by_now)
  redis.call('PEXPIRE', KEYS[4], '900000')
end
if ARGV[9] == 'ledger' or ARGV[9] == 'ledger_sweep' then
  local is_running = state == 'held' or state == 'orphaned'
  if (is_running and tonumber(ARGV[4]) == epoch) or (not is_running and ended_by == 'ledger') then
    return {'SKIP'}
  end
  local limits = read_key(KEYS[3], epoch)
  if limits then note_use(limits, now_ms(), tonumber(ARGV[5]), 0) end
  end_session(ARGV[9] == 'ledger' and 'ledger' or 'sweep')
  return {'OK', '0'}
end
if state == 'settled' or state == 'released' then
  if ended_by == 'sweep' then return {'DIRECT'} end
  return {'ENDED', state}
end
if tonumber(ARGV[4]) ~= epoch then return {'STALE', session_held or '0'} end
if not state then return {'DIRECT'} end

local money = read_money(KEYS[2], epoch)
if not money.present then return {'FENCE', 'account_lost', int(epoch)} end
local cost, held = tonumber(ARGV[5]), tonumber(session_held)
local loan = math.min(cost, held + money.free)
redis.call('HSET', KEYS[2], 'spent_nanos', int(money.spent + loan), 'held_nanos', int(money.held - held))

local now = now_ms()
local limits = read_key(KEYS[3], epoch)
if limits then
  note_use(limits, now, cost, held)
  if limits.tokens ~= '' then
    local minute, count, last = read_window(KEYS[3], 'tokens', now)
    local taken = tonumber(string.match(plan, '(%d+)$'))
    count = math.max(0, count + tonumber(ARGV[7]) - taken)
    redis.call('HSET', KEYS[3], 'tokens', int(minute) .. '|' .. int(count) .. '|' .. int(last))
  end
  if limits.concurrency ~= '' then redis.call('ZREM', KEYS[6], ARGV[2]) end
end
redis.call('XADD', KEYS[7], '*', 'record', ARGV[6], 'epoch', int(epoch), 'loan_nanos', int(loan),
  'account', ARGV[8])
end_session(ARGV[9])
return {'OK', int(loan)}
