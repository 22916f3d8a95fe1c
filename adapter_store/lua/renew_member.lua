-- Renew a member's lease with its newest report, tell those who wait for reports when it changed,
-- and drop the members whose lease has ended.
-- KEYS: members, member, reports, what stands beside the report
-- ARGV: member id, report (JSON), lease in ms, what stands beside it (JSON; empty: nothing)
local changed = redis.call('GET', KEYS[2]) ~= ARGV[2]
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
if ARGV[4] == '' then
  redis.call('DEL', KEYS[4])
else
  redis.call('SET', KEYS[4], ARGV[4], 'PX', ARGV[3])
end
redis.call('ZADD', KEYS[1], now_ms() + ARGV[3], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms())
if changed then redis.call('XADD', KEYS[3], 'MAXLEN', '~', 1000, '*', 'id', ARGV[1]) end
forget_with_cluster(KEYS[1], KEYS[3])
