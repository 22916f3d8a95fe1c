-- Replace fields of an adapter if nobody changed it meanwhile, and tell everyone.
-- KEYS: adapter, events, sequence, once, then one blob key per removed version
-- ARGV: name, expected revision, number of fields to set, then field and value of each,
--   then the fields to remove; a removed `version:<number>` goes with one blob key, in order
-- Returns {event id, new revision}, or an error MISSING | STALE | DANGLING.
return once(KEYS[4], function()
  local revision = redis.call('HGET', KEYS[1], 'revision')
  if not revision then return redis.error_reply('MISSING') end
  if revision ~= ARGV[2] then return redis.error_reply('STALE') end

  local after = {}
  local fields = redis.call('HGETALL', KEYS[1])
  for i = 1, #fields, 2 do after[fields[i]] = fields[i + 1] end
  local first_removed = 4 + 2 * ARGV[3]
  for i = 4, first_removed - 1, 2 do after[ARGV[i]] = ARGV[i + 1] end
  for i = first_removed, #ARGV do after[ARGV[i]] = nil end
  for field, value in pairs(after) do
    if string.sub(field, 1, 6) == 'alias:' and not after['version:' .. value] then
      return redis.error_reply('DANGLING')
    end
  end

  for i = 4, first_removed - 1, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
  local blob = 5
  for i = first_removed, #ARGV do
    redis.call('HDEL', KEYS[1], ARGV[i])
    if string.sub(ARGV[i], 1, 8) == 'version:' then
      redis.call('SREM', KEYS[blob], ARGV[1] .. '@' .. string.sub(ARGV[i], 9))
      blob = blob + 1
    end
  end
  local event, sequence = tell(KEYS[2], KEYS[3], 'change', ARGV[1])
  redis.call('HSET', KEYS[1], 'revision', sequence)
  return {event, sequence}
end)
