-- Put an adapter back as it was saved, versions with their numbers, and tell everyone.
-- KEYS: adapter, names, events, sequence, issued, reserved, then one blob key per version
-- ARGV: name, highest number ever issued, number of versions, then digest and `name@version` of
--   each, then field and value of each field of the adapter
-- Returns the event id, or an error EXISTS | UNRESERVED.
if redis.call('EXISTS', KEYS[1]) == 1 then return redis.error_reply('EXISTS') end
local fields_from = 4 + 2 * ARGV[3]
for i = 4, fields_from - 1, 2 do
  if not is_live(KEYS[6], ARGV[i]) then return redis.error_reply('UNRESERVED') end
end
for i = 4, fields_from - 1, 2 do
  redis.call('SADD', KEYS[7 + (i - 4) / 2], ARGV[i + 1])
  redis.call('ZREM', KEYS[6], ARGV[i])
end
for i = fields_from, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
local issued = tonumber(redis.call('HGET', KEYS[5], ARGV[1]) or '0')
redis.call('HSET', KEYS[5], ARGV[1], math.max(issued, ARGV[2]))
redis.call('ZADD', KEYS[2], 0, ARGV[1])
return tell(KEYS[3], KEYS[4], 'restore', ARGV[1])
