-- audit: sums of accounts, keys, sessions and outbox of one bucket, at one instant.
-- KEYS: 1 e epoch, 2 x leases, 3 o outbox, then `accounts` account hashes, `keys` key hashes, session hashes
-- ARGV: 1 known_epoch, 2 accounts (how many), 3 keys (how many), 4 outbox_max, then the ids of all sessions
-- Returns {`OK`, epoch, accounts, keys, sessions, outbox_entries, unposted}
--           account: epoch, granted, spent, held, gseq, rseq; key: account, epoch, used, held;
--           session: id, account, held, state, epoch, lease end; unposted: account, epoch, loan_nanos, ...
--         {`AGAIN`}: a session began meanwhile  {`FENCE`, cause, seen_epoch}

local epoch, fence = read_epoch(KEYS[1], tonumber(ARGV[1]))
if not epoch then return fence end
local account_count, key_count = tonumber(ARGV[2]), tonumber(ARGV[3])
local session_key = {}
for index = 5, #ARGV do session_key[ARGV[index]] = KEYS[3 + account_count + key_count + index - 4] end
local sessions = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  if not session_key[id] then return {'AGAIN'} end
  local found = redis.call('HMGET', session_key[id], 'account', 'held_nanos', 'state', 'epoch', 'lease_ends_at_ms')
  if found[1] then sessions[#sessions + 1] = {id, unpack(found)} end
end
local accounts, keys = {}, {}
for index = 1, account_count do
  accounts[index] = redis.call('HMGET', KEYS[3 + index], 'epoch', 'granted_nanos', 'spent_nanos', 'held_nanos', 'gseq',
    'rseq')
end
for index = 1, key_count do
  keys[index] = redis.call('HMGET', KEYS[3 + account_count + index], 'account', 'epoch', 'used_nanos', 'held_nanos')
end
local unposted, order = {}, {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[3], '-', '+', 'COUNT', ARGV[4])) do
  local fields = {}
  for index = 1, #entry[2], 2 do fields[entry[2][index]] = entry[2][index + 1] end
  if fields.account and fields.loan_nanos then
    local place = fields.account .. '|' .. (fields.epoch or '0')
    if not unposted[place] then order[#order + 1] = {place, fields.account, fields.epoch or '0'} end
    unposted[place] = (unposted[place] or 0) + tonumber(fields.loan_nanos)
  end
end
local sums = {}
for _, one in ipairs(order) do
  sums[#sums + 1] = one[2]
  sums[#sums + 1] = one[3]
  sums[#sums + 1] = int(unposted[one[1]])
end
return {'OK', int(epoch), accounts, keys, sessions, int(redis.call('XLEN', KEYS[3])), sums}
