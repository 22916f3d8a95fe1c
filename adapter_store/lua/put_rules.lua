-- Replace the rules of the choice if nobody replaced them meanwhile; older ones are kept for a while.
-- KEYS: rules, once
-- ARGV: revision that is expected ('' takes any), rules as JSON ('' for those of the settings)
-- Returns the new revision, or an error STALE.
return once(KEYS[2], function()
  local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  local revision = 0
  if newest[1] then
    local fields = newest[1][2]
    for i = 1, #fields, 2 do
      if fields[i] == 'revision' then revision = tonumber(fields[i + 1]) end
    end
  end
  if ARGV[1] ~= '' and tonumber(ARGV[1]) ~= revision then return redis.error_reply('STALE') end
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', 100, '*', 'revision', revision + 1, 'record', ARGV[2])
  return revision + 1
end)
