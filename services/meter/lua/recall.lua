-- recall: take back what nothing holds of an account's loan. `rseq` is dense per account and epoch: the last one
-- again gets the same answer, and takes nothing more.
-- KEYS: 1 e epoch, 2 a account, 3 i index
-- ARGV: 1 known_epoch, 2 account_id, 3 epoch (of the loan), 4 rseq, 5 wanted_nanos
-- Returns {`OK`, rseq, recalled_nanos, granted_nanos}  {`STALE`, epoch}
--         {`ORDER`, rseq}: this is neither the last rseq nor the next one  {`FENCE`, cause, seen_epoch}

local epoch, fence = read_epoch(KEYS[1], tonumber(ARGV[1]))
if not epoch then return fence end
if tonumber(ARGV[3]) ~= epoch then return {'STALE', int(epoch)} end
local money = read_money(KEYS[2], epoch)
local rseq, wanted = tonumber(ARGV[4]), tonumber(ARGV[5])
if not money.present then
  if account_lost(KEYS[3], ARGV[2], epoch) then return {'FENCE', 'account_lost', int(epoch)} end
  -- Its first loan may still be on its way: this recall must be known to have come before it.
  make_account(KEYS[2], KEYS[3], ARGV[2], epoch)
end
local found = redis.call('HMGET', KEYS[2], 'rseq', 'recalled_nanos')
local last, recalled = tonumber(found[1] or '0'), tonumber(found[2] or '0')
if rseq == last then return {'OK', int(last), int(recalled), int(money.granted)} end
if rseq ~= last + 1 then return {'ORDER', int(last)} end
recalled = math.max(0, math.min(wanted, money.free))
local granted = money.granted - recalled
-- What came back is claimed: it is not lent again for the asking.
redis.call('HSET', KEYS[2], 'granted_nanos', int(granted), 'rseq', int(rseq), 'recalled_nanos', int(recalled),
  'lendable_nanos', '0')
return {'OK', int(rseq), int(recalled), int(granted)}
