-- Keep what answered turns of a tenant's conversations; the oldest go, by age and by number.
-- KEYS: what answered (hash by mark), when (sorted set of marks, by ms)
-- ARGV: how long they are kept in ms, how many at most, then mark and what answered (JSON), ...
local now = now_ms()
for i = 3, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('ZADD', KEYS[2], now, ARGV[i])
end
-- Some at a time: no script may hold up the server. As many come at most with each call.
local gone = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[1], 'LIMIT', 0, 1000)
local excess = math.min(redis.call('ZCARD', KEYS[2]) - ARGV[2], 1000)
if excess > #gone then gone = redis.call('ZRANGE', KEYS[2], 0, excess - 1) end
if #gone > 0 then
  redis.call('HDEL', KEYS[1], unpack(gone))
  redis.call('ZREM', KEYS[2], unpack(gone))
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
