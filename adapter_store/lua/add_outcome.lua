-- Keep how well a request was answered, once for each candidate; all of it or nothing.
-- KEYS: outcomes, raters, once, then for each candidate: rated
-- ARGV: how long a request can be rated in ms, how many outcomes are kept, tenant, then for each
--   candidate: outcome (JSON)
-- Returns whether it was the first of all of them.
return once(KEYS[3], function()
  for i = 4, #KEYS do
    if redis.call('EXISTS', KEYS[i]) == 1 then return 0 end
  end
  for i = 4, #KEYS do
    redis.call('SET', KEYS[i], 1, 'PX', ARGV[1])
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'record', ARGV[i])
  end
  redis.call('ZADD', KEYS[2], now_ms(), ARGV[3])
  return 1
end)
