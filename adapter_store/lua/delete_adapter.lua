-- Remove an adapter with all its versions, and tell everyone.
-- KEYS: adapter, names, events, sequence, once, then one blob key per version
-- ARGV: name, expected revision, then `name@version` per blob key
-- Returns the event id, or an error MISSING | STALE.
return once(KEYS[5], function()
  local revision = redis.call('HGET', KEYS[1], 'revision')
  if not revision then return redis.error_reply('MISSING') end
  if revision ~= ARGV[2] then return redis.error_reply('STALE') end
  for i = 6, #KEYS do redis.call('SREM', KEYS[i], ARGV[i - 3]) end
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
  local event = tell(KEYS[3], KEYS[4], 'delete', ARGV[1])
  return event
end)
