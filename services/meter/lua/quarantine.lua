-- quarantine: move an outbox entry that nobody can read out of the way, keeping it.
-- KEYS: 1 o outbox, 2 p quarantine stream
-- ARGV: 1 entry_id
-- Returns {`OK`, moved}: 1 or 0

local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
if #found == 0 then return {'OK', '0'} end
redis.call('XADD', KEYS[2], '*', 'entry_id', ARGV[1], unpack(found[1][2]))
redis.call('XDEL', KEYS[1], ARGV[1])
return {'OK', '1'}
