-- grant: add loans to an account. `gseq` is dense per account and epoch: a duplicate does nothing, a gap
-- stops. `lendable_nanos`, what the ledger could still lend, is a hint for the size of holds.
-- KEYS: 1 e epoch, 2 a account, 3 i index
-- ARGV: 1 known_epoch, 2 account_id, 3 epoch (of the loans), 4 lendable_nanos, then pairs of gseq, nanos
-- Returns {`OK`, gseq, free_nanos}  {`GAP`, gseq}: loans after gseq are missing  {`STALE`, epoch}
--         {`FENCE`, cause, seen_epoch}

local epoch, fence = read_epoch(KEYS[1], tonumber(ARGV[1]))
if not epoch then return fence end
if tonumber(ARGV[3]) ~= epoch then return {'STALE', int(epoch)} end
local money = read_money(KEYS[2], epoch)
if not money.present then
  if account_lost(KEYS[3], ARGV[2], epoch) then return {'FENCE', 'account_lost', int(epoch)} end
  make_account(KEYS[2], KEYS[3], ARGV[2], epoch)
end
local gap = false
for index = 5, #ARGV, 2 do
  local gseq = tonumber(ARGV[index])
  if gseq > money.gseq + 1 then
    gap = true
    break
  end
  if gseq == money.gseq + 1 then
    local nanos = tonumber(ARGV[index + 1])
    if money.granted + nanos >= 9007199254740992 then return redis.error_reply('ERR granted_nanos too large') end
    money.gseq, money.granted, money.free = gseq, money.granted + nanos, money.free + nanos
  end
end
redis.call('HSET', KEYS[2], 'granted_nanos', int(money.granted), 'gseq', int(money.gseq),
  'lendable_nanos', ARGV[4])
if gap then return {'GAP', int(money.gseq)} end
return {'OK', int(money.gseq), int(money.free)}
