-- extend: renew a session's lease, keep its checkpoint and, when more output is wanted, hold another slice.
-- KEYS: 1 e epoch, 2 a account, 3 k key, 4 s session, 5 x leases, 6 c concurrency
-- ARGV: 1 ref_epoch, 2 session_id, 3 seq, 4 want_tokens (total), 5 used_tokens, 6 used_nanos,
--       7 slice_tokens, 8 accept_part (1: nothing more can be lent), 9 lease_ms, 10 wait_ms
-- Returns {`OK`, answer}: answer = held|granted|final|free|lendable|gseq|largest|epoch
--         {`OLD`, answer}: the same or an older call again (older: nothing was done)
--         {`END`, cause}: unknown, ended, lease_over, stale_epoch, key_disabled, account_suspended
--         {`SHORT`, epoch, wanted, gseq, largest, held}: borrow, then again; opens of the account wait
--         {`FENCE`, cause, seen_epoch}

local epoch, fence = read_epoch(KEYS[1], tonumber(ARGV[1]))
if not epoch then return fence end
if tonumber(ARGV[1]) < epoch then return {'END', 'stale_epoch'} end
local session = read_fields(KEYS[4], {'state', 'seq', 'answer', 'held_nanos', 'granted_tokens',
  'final', 'plan', 'used_tokens', 'used_nanos', 'extended'})
if not session.state then return {'END', 'unknown'} end
if session.state == 'orphaned' then return {'END', 'lease_over'} end
if session.state ~= 'held' then return {'END', 'ended'} end
local money = read_money(KEYS[2], epoch)
if not money.present then return {'FENCE', 'account_lost', int(epoch)} end

local held, granted = tonumber(session.held_nanos), tonumber(session.granted_tokens)
local final = tonumber(session.final or '0')
local function answer_now()
  return table.concat({int(held), int(granted), final, int(money.free), int(money.lendable), int(money.gseq),
    int(money.largest_hold), int(epoch)}, '|')
end
local seq = tonumber(ARGV[3])
if seq == tonumber(session.seq) and session.extended then return {'OLD', session.answer} end
if seq <= tonumber(session.seq) then return {'OLD', answer_now()} end

local limits = read_key(KEYS[3], epoch)
if limits and limits.state ~= 'active' then return {'END', 'key_disabled'} end
if limits and limits.account_state ~= 'active' then return {'END', 'account_suspended'} end
local now = now_ms()
local lease_end = now + tonumber(ARGV[9])
redis.call('HSET', KEYS[4], 'lease_ends_at_ms', int(lease_end),
  'used_tokens', int(math.max(tonumber(ARGV[5]), tonumber(session.used_tokens or '0'))),
  'used_nanos', int(math.min(held, math.max(tonumber(ARGV[6]), tonumber(session.used_nanos or '0')))))
redis.call('ZADD', KEYS[5], int(lease_end), ARGV[2])
if limits and limits.concurrency ~= '' then
  redis.call('ZADD', KEYS[6], int(lease_end), ARGV[2])
end

local input, picos, bound = string.match(session.plan, '^(%d+)|(%d+)|(%d+)|')
input, picos, bound = tonumber(input), tonumber(picos), tonumber(bound)
local want = tonumber(ARGV[4])
if want > granted and granted < bound then
  local room = limits and key_room(limits, now) or 9007199254740991
  local available = math.min(money.free + money.lendable, room)
  local function more_for(tokens)
    return input + nanos_for(tokens, picos) - held
  end
  local tokens = math.min(bound, math.max(want, granted + tonumber(ARGV[7])))
  if more_for(bound) <= math.floor(available / 4) then tokens = bound end
  final = 0
  local function part_of(limit)
    tokens = math.max(granted, tokens_for(held - input + limit, picos, tokens))
    final = 1
  end
  if more_for(tokens) > room then part_of(room) end
  if more_for(tokens) > money.free then
    if ARGV[8] ~= '1' then
      redis.call('HSET', KEYS[2], 'waiting_until_ms', int(now + tonumber(ARGV[10])))
      return {'SHORT', int(epoch), int(more_for(tokens) - money.free), int(money.gseq),
        int(math.max(money.largest_hold, held)), int(money.held)}
    end
    part_of(money.free)
  end
  local more = math.max(0, more_for(tokens))
  held, granted = held + more, tokens
  money.free, money.held = money.free - more, money.held + more
  money.largest_hold = math.max(money.largest_hold, held)
  redis.call('HSET', KEYS[2], 'held_nanos', int(money.held), 'largest_hold_nanos', int(money.largest_hold))
  if limits then redis.call('HSET', KEYS[3], 'held_nanos', int(limits.held + more)) end
end
if money.waiting_until > 0 then redis.call('HDEL', KEYS[2], 'waiting_until_ms') end
local answer = answer_now()
redis.call('HSET', KEYS[4], 'seq', ARGV[3], 'answer', answer, 'extended', '1', 'held_nanos', int(held),
  'granted_tokens', int(granted), 'final', final)
return {'OK', answer}
