-- init_epoch: begin a bucket's epoch. The higher epoch always wins; all hashes of older ones count as absent.
-- KEYS: 1 e epoch, 2 i index
-- ARGV: 1 epoch
-- Returns {`OK`, epoch}: the epoch in force

local current = tonumber(redis.call('GET', KEYS[1]) or '0')
local wanted = tonumber(ARGV[1])
if wanted <= current then return {'OK', int(current)} end
redis.call('SET', KEYS[1], int(wanted))
redis.call('DEL', KEYS[2])
return {'OK', int(wanted)}
