-- Put an adapter back as it was saved, versions with their numbers, and tell everyone.
-- KEYS: adapter, names, events, sequence, once, then blob and reserved of each version
-- ARGV: name, number of versions, then reservation and `name@version` of each, then field and value
--   of each field of the adapter
-- Returns the event id, or an error EXISTS | UNRESERVED.
return once(KEYS[5], function()
  if redis.call('EXISTS', KEYS[1]) == 1 then return redis.error_reply('EXISTS') end
  local versions = tonumber(ARGV[2])
  for i = 0, versions - 1 do
    if not is_live(KEYS[7 + 2 * i], ARGV[3 + 2 * i]) then
      return redis.error_reply('UNRESERVED')
    end
  end
  for i = 0, versions - 1 do
    redis.call('SADD', KEYS[6 + 2 * i], ARGV[4 + 2 * i])
    redis.call('ZREM', KEYS[7 + 2 * i], ARGV[3 + 2 * i])
  end
  for i = 3 + 2 * versions, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
  redis.call('ZADD', KEYS[2], 0, ARGV[1])
  local event, sequence = tell(KEYS[3], KEYS[4], 'restore', ARGV[1])
  redis.call('HSET', KEYS[1], 'revision', sequence)
  return event
end)
