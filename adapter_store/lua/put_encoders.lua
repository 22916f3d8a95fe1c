-- Replace the record of trained encoders if nobody replaced it meanwhile, and have their blobs known
-- to be used.
-- KEYS: encoders, once, blobs that are used from now on, blobs that are not any more
-- ARGV: revision that is expected, the record as JSON, who uses the blobs, how many are used from now on
-- Returns the new revision, or an error STALE.
return once(KEYS[2], function()
  local reply = replace_newest(KEYS[1], ARGV[1], ARGV[2])
  if type(reply) == 'table' then return reply end
  for i = 3, #KEYS do
    local command = i - 2 <= tonumber(ARGV[4]) and 'SADD' or 'SREM'
    redis.call(command, KEYS[i], ARGV[3])
  end
  return reply
end)
