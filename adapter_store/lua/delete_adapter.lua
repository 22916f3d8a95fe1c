-- Remove an adapter with all its versions, and tell everyone.
-- KEYS: adapter, names, events, sequence, then one blob key per version
-- ARGV: name, expected revision, then `name@version` per blob key
-- Returns the event id, or an error MISSING | STALE.
local revision = redis.call('HGET', KEYS[1], 'revision')
if not revision then return redis.error_reply('MISSING') end
if revision ~= ARGV[2] then return redis.error_reply('STALE') end
for i = 5, #KEYS do redis.call('SREM', KEYS[i], ARGV[i - 2]) end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return tell(KEYS[3], KEYS[4], 'delete', ARGV[1])
