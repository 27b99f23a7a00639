-- open: admit a session and hold what it may cost; all or nothing.
-- KEYS: 1 e epoch, 2 a account, 3 k key, 4 s session, 5 x leases, 6 c concurrency, 7 i index
-- ARGV: 1 known_epoch, 2 session_id, 3 session_ms (time inside the id), 4 seq, 5 account_id, 6 key_id,
--       7 revision (of the key snapshot that the caller used), 8 model,
--       9 mode: `explicit` (hold the whole bound), `capped` (no limit given: what 25% of the available
--         money buys, at least tokens_min), `stream` (whole bound when it is at most 25%, else slices),
--       10 input_bound_nanos, 11 input_exact_nanos (-1: not counted), 12 out_picos (per output token),
--       13 output_bound_tokens, 14 tokens_min, 15 slice_tokens, 16 choices,
--       17 accept_part (1: nothing more can be lent), 18 lease_ms, 19 rate_tokens, 20 record
-- Returns {`OK`, answer}: answer = epoch|held|granted|final|available|free|lendable|gseq|largest|requests|tokens
--         {`OLD`, answer, record}: the same call again
--         {`FENCE`, cause, seen_epoch}  {`KEY`, is_absent}: configure this key first
--         {`STALE`}: the snapshot is old
--         {`COUNT`}: count the input exactly  {`WAIT`}: a stream of the account waits for money
--         {`SHORT`, epoch, wanted, gseq, largest, held}: borrow, then again
--         {`NO`, cause, a, b, c}: session_ended, session_running, session_time, key_disabled, key_expired,
--           account_suspended, model; requests/tokens (limit, wait_ms), concurrency (limit);
--           key_quota, budget_day, budget_month, balance (missing_nanos, held_nanos, limit_nanos)

local epoch, fence = read_epoch(KEYS[1], tonumber(ARGV[1]))
if not epoch then return fence end
local now = now_ms()
local seq = tonumber(ARGV[4])

local state = redis.call('HGET', KEYS[4], 'state')
if state then
  if state ~= 'held' then return {'NO', 'session_ended'} end
  local session = redis.call('HMGET', KEYS[4], 'seq', 'answer', 'record')
  if tonumber(session[1]) ~= seq then return {'NO', 'session_running'} end
  return {'OLD', session[2], session[3]}
end
-- A tombstone lives 15 min: ids older than 10 min, or from the future, could outlive it.
local age_ms = now - tonumber(ARGV[3])
if age_ms > 600000 or age_ms < -240000 then return {'NO', 'session_time'} end

local limits = read_key(KEYS[3], epoch)
if not limits then return {'KEY', '1'} end
if limits.revision < tonumber(ARGV[7]) then return {'KEY', '0'} end
if limits.revision > tonumber(ARGV[7]) then return {'STALE'} end
if limits.state ~= 'active' then return {'NO', 'key_disabled'} end
if limits.account_state ~= 'active' then return {'NO', 'account_suspended'} end
if limits.expires_at ~= '' and now >= tonumber(limits.expires_at) then return {'NO', 'key_expired'} end
if limits.models ~= '' and not string.find(limits.models, ',' .. ARGV[8] .. ',', 1, true) then
  return {'NO', 'model'}
end

local windows, requests_seen, tokens_seen = {}, '', ''
local function take(field, limit, more)
  local minute, count, last, used = read_window(KEYS[3], field, now)
  if used + more > limit then
    return {'NO', field, int(limit), int(window_wait(now, count, last, more, limit))}
  end
  windows[#windows + 1] = field
  windows[#windows + 1] = int(minute) .. '|' .. int(count + more) .. '|' .. int(last)
  return nil, int(used + more)
end
if limits.requests ~= '' then
  local refusal
  refusal, requests_seen = take('requests', tonumber(limits.requests), 1)
  if refusal then return refusal end
end
local rate_tokens = tonumber(ARGV[19])
if limits.tokens ~= '' then
  local refusal
  refusal, tokens_seen = take('tokens', tonumber(limits.tokens), rate_tokens)
  if refusal then return refusal end
end
if limits.concurrency ~= '' then
  redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', int(now))
  if redis.call('ZCARD', KEYS[6]) >= tonumber(limits.concurrency) then
    return {'NO', 'concurrency', limits.concurrency}
  end
end

local money = read_money(KEYS[2], epoch)
if not money.present and account_lost(KEYS[7], ARGV[5], epoch) then
  return {'FENCE', 'account_lost', int(epoch)}
end
local room, room_name, room_limit = key_room(limits, now)
local available = math.min(money.free + money.lendable, room)
local quarter = math.floor(available / 4)
local mode, exact, picos = ARGV[9], tonumber(ARGV[11]), tonumber(ARGV[12])
local input = exact >= 0 and exact or tonumber(ARGV[10])
local bound, tokens_min, choices = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[16])

local tokens = bound
if mode == 'capped' then
  tokens = tokens_for(quarter, picos, bound)
  tokens = math.max(tokens_min, tokens - math.fmod(tokens, choices))
elseif mode == 'stream' and input + nanos_for(bound, picos) > quarter then
  tokens = math.min(bound, tonumber(ARGV[15]))
end
local hold = input + nanos_for(tokens, picos)

-- A coarse bound may only be held where it can't crowd out what exact holds would admit. How much an
-- unknown account has is not known here: it borrows first.
local known = money.present and available or room
if exact < 0 and input > 0 and 256 * hold > known then return {'COUNT'} end
if hold > 0 and money.waiting_until > now then return {'WAIT'} end

local final = 0
local function part_of(limit)
  local part = tokens_for(limit - input, picos, tokens)
  if mode ~= 'stream' or part < tokens_min or input > limit then return false end
  tokens, final = part, 1
  hold = input + nanos_for(tokens, picos)
  return true
end
local function refuse(cause, limit, most)
  local least = mode == 'stream' and input + nanos_for(tokens_min, picos) or hold
  return {'NO', cause, int(least - limit), int(money.held), int(most)}
end
if hold > room and not part_of(room) then return refuse(room_name, room, room_limit) end
if hold > money.free then
  if ARGV[17] ~= '1' then
    return {'SHORT', int(epoch), int(hold - money.free), int(money.gseq),
      int(math.max(money.largest_hold, hold)), int(money.held)}
  end
  if not part_of(money.free) then return refuse('balance', money.free, money.granted - money.spent) end
end

if not money.present then make_account(KEYS[2], KEYS[7], ARGV[5], epoch) end
local largest = math.max(money.largest_hold, hold)
redis.call('HSET', KEYS[2], 'held_nanos', int(money.held + hold), 'largest_hold_nanos', int(largest))
redis.call('HSET', KEYS[3], 'held_nanos', int(limits.held + hold), unpack(windows))
local lease_end = now + tonumber(ARGV[18])
if limits.concurrency ~= '' then redis.call('ZADD', KEYS[6], int(lease_end), ARGV[2]) end
redis.call('ZADD', KEYS[5], int(lease_end), ARGV[2])
local answer = table.concat({int(epoch), int(hold), int(tokens), final, int(available), int(money.free - hold),
  int(money.lendable), int(money.gseq), int(largest), requests_seen, tokens_seen}, '|')
redis.call('HSET', KEYS[4], 'state', 'held', 'seq', ARGV[4], 'epoch', int(epoch), 'held_nanos', int(hold),
  'granted_tokens', int(tokens), 'lease_ends_at_ms', int(lease_end), 'account', ARGV[5], 'key', ARGV[6],
  'plan', table.concat({int(input), ARGV[12], ARGV[13], ARGV[19]}, '|'), 'answer', answer, 'record', ARGV[20])
return {'OK', answer}
