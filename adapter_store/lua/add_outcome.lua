-- Keep how well a request was answered, once.
-- KEYS: rated, outcomes, raters, once
-- ARGV: outcome (JSON), how long a request can be rated in ms, how many outcomes are kept, tenant
-- Returns whether it was the first.
return once(KEYS[4], function()
  if not redis.call('SET', KEYS[1], 1, 'NX', 'PX', ARGV[2]) then return 0 end
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'record', ARGV[1])
  redis.call('ZADD', KEYS[3], now_ms(), ARGV[4])
  return 1
end)
