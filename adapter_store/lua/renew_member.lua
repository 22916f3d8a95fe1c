-- Renew a member's lease with its newest report, and drop the members whose lease has ended.
-- KEYS: members, member
-- ARGV: member id, report (JSON), lease in ms
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[1], now_ms + ARGV[3], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms)
