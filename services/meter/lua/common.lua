-- Helpers that stand in front of every script when it is loaded (see scripts.py).
-- Every amount is a whole number under 2^53; `int` writes it without an exponent.

local function int(number)
  return string.format('%.0f', number)
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- The bucket's epoch; or nil and the reply to give, when the bucket can't be trusted.
local function read_epoch(key, known)
  local epoch = tonumber(redis.call('GET', key) or '0')
  if epoch == 0 then return nil, {'FENCE', 'epoch_missing', '0'} end
  if epoch < known then return nil, {'FENCE', 'epoch_behind', int(epoch)} end
  return epoch, nil
end

local function read_fields(key, names)
  local values = redis.call('HMGET', key, unpack(names))
  local fields = {}
  for index = 1, #names do fields[names[index]] = values[index] or nil end
  return fields
end

-- Nanodollars of `tokens` at `picos` a token, rounded up.
local function nanos_for(tokens, picos)
  local product = tokens * picos
  local rest = math.fmod(product, 1000)
  local nanos = (product - rest) / 1000
  if rest > 0 then nanos = nanos + 1 end
  -- Past 2^53 picodollars the product itself is rounded: stay above the truth.
  if product >= 9007199254740992 then nanos = nanos + 2 end
  return nanos
end

-- The most tokens, up to `most`, that `nanos` surely pay for.
local function tokens_for(nanos, picos, most)
  if picos == 0 then return most end
  if nanos <= 0 then return 0 end
  local tokens = math.min(most, math.floor(nanos * 1000 / picos))
  if nanos_for(tokens, picos) > nanos then tokens = tokens - 1 end
  return math.max(0, tokens)
end

-- UTC day `YYYY-MM-DD` and month `YYYY-MM` of Unix milliseconds.
local function day_and_month(ms)
  local shifted = math.floor(ms / 86400000) + 719468
  local era = math.floor(shifted / 146097)
  local day_of_era = shifted - era * 146097
  local year_of_era = math.floor((day_of_era - math.floor(day_of_era / 1460)
    + math.floor(day_of_era / 36524) - math.floor(day_of_era / 146096)) / 365)
  local day_of_year = day_of_era
    - (365 * year_of_era + math.floor(year_of_era / 4) - math.floor(year_of_era / 100))
  local march_month = math.floor((5 * day_of_year + 2) / 153)
  local day = day_of_year - math.floor((153 * march_month + 2) / 5) + 1
  local month = march_month < 10 and march_month + 3 or march_month - 9
  local year = year_of_era + era * 400 + (month <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02d', year, month, day), string.format('%04d-%02d', year, month)
end

-- Sliding window of a minute: this minute's count plus the last one's, weighted by what of it is
-- still inside. Returns minute, this count, last count, the estimate.
local function window(now, minute, count, last)
  local current = math.floor(now / 60000)
  minute, count, last = tonumber(minute or '0'), tonumber(count or '0'), tonumber(last or '0')
  if minute == current - 1 then
    count, last = 0, count
  elseif minute ~= current then
    count, last = 0, 0
  end
  local inside = 1 - math.fmod(now, 60000) / 60000
  return current, count, last, math.ceil(last * inside) + count
end

-- Milliseconds until `more` fit into the window again.
local function window_wait(now, count, last, more, limit)
  local elapsed = math.fmod(now, 60000)
  if more > limit then return 60000 end
  if count + more <= limit then
    return math.max(1, math.ceil((1 - (limit - count - more) / last) * 60000 - elapsed))
  end
  return math.ceil(60000 - elapsed + (1 - (limit - more) / count) * 60000)
end

-- The account's money in this epoch; a hash of another epoch counts as absent: all zero.
local function read_money(key, epoch)
  local found = redis.call('HMGET', key, 'epoch', 'granted_nanos', 'spent_nanos', 'held_nanos', 'gseq',
    'lendable_nanos', 'largest_hold_nanos', 'waiting_until_ms')
  if tonumber(found[1] or '0') ~= epoch then
    return {present = false, granted = 0, spent = 0, held = 0, free = 0, gseq = 0, lendable = 0,
      largest_hold = 0, waiting_until = 0}
  end
  local granted, spent, held = tonumber(found[2]), tonumber(found[3]), tonumber(found[4])
  return {present = true, granted = granted, spent = spent, held = held, free = granted - spent - held,
    gseq = tonumber(found[5]), lendable = tonumber(found[6]), largest_hold = tonumber(found[7]),
    waiting_until = tonumber(found[8] or '0')}
end

-- An account that this epoch's index knows but whose hash is gone was lost: nothing can be trusted.
local function account_lost(index, account, epoch)
  return tonumber(redis.call('HGET', index, 'a:' .. account) or '0') == epoch
end

local function make_account(key, index, account, epoch)
  redis.call('DEL', key)
  redis.call('HSET', key, 'epoch', int(epoch), 'granted_nanos', '0', 'spent_nanos', '0', 'held_nanos', '0',
    'gseq', '0', 'lendable_nanos', '0', 'largest_hold_nanos', '0')
  redis.call('HSET', index, 'a:' .. account, int(epoch))
end

local NOT_LIMITED = 'active|active||||||||'
local LIMITS_PATTERN = '^' .. string.rep('([^|]*)|', 9) .. '(.*)$'

-- A key in this epoch, or nil. `limits` packs what `configure` sets into one field, in this order; empty: no
-- limit. The windows are fields of their own, read only where there is a limit.
local function read_key(key, epoch)
  local found = redis.call('HMGET', key, 'epoch', 'revision', 'limits', 'used_nanos', 'held_nanos', 'days')
  if tonumber(found[1] or '0') ~= epoch then return nil end
  local limits = {revision = tonumber(found[2]), used = tonumber(found[4]), held = tonumber(found[5]),
    days = found[6], state = 'active', account_state = 'active', expires_at = '', quota = '', budget_day = '',
    budget_month = '', requests = '', tokens = '', concurrency = '', models = ''}
  if found[3] ~= NOT_LIMITED then
    limits.state, limits.account_state, limits.expires_at, limits.quota, limits.budget_day, limits.budget_month,
      limits.requests, limits.tokens, limits.concurrency, limits.models = string.match(found[3], LIMITS_PATTERN)
  end
  return limits
end

-- The field `days`: number of the day (0: not known), day, used in it, month, used in it. Returns those of
-- now; what was used in another day or month is forgotten.
local function read_days(limits, now)
  local number = math.floor(now / 86400000)
  local known, known_day, used_day, known_month, used_month =
    string.match(limits.days or '', '^([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)$')
  if tonumber(known) == number then
    return number, known_day, tonumber(used_day), known_month, tonumber(used_month)
  end
  local day, month = day_and_month(now)
  return number, day, known_day == day and tonumber(used_day) or 0, month,
    known_month == month and tonumber(used_month) or 0
end

-- A sliding window's field: minute|count|last.
local function read_window(key, field, now)
  local minute, count, last = string.match(redis.call('HGET', key, field) or '', '^(%d+)|(%d+)|(%d+)$')
  return window(now, minute, count, last)
end

-- What quota and budgets leave to hold, the name of the tightest and its limit ('' and 2^53: none).
local function key_room(limits, now)
  local room, name, most = 9007199254740991, '', 0
  local function tighten(limit, used, limit_name)
    local left = tonumber(limit) - used - limits.held
    if left < room then room, name, most = left, limit_name, tonumber(limit) end
  end
  if limits.quota ~= '' then tighten(limits.quota, limits.used, 'key_quota') end
  if limits.budget_day ~= '' or limits.budget_month ~= '' then
    local _, _, used_day, _, used_month = read_days(limits, now)
    if limits.budget_day ~= '' then tighten(limits.budget_day, used_day, 'budget_day') end
    if limits.budget_month ~= '' then tighten(limits.budget_month, used_month, 'budget_month') end
  end
  return room, name, most
end
