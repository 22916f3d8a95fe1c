-- Publish a plan, unless somebody has become leader since: one that was paused must not undo the
-- plans of its successor.
-- KEYS: plan, plans, fence
-- ARGV: the leader's number, plan (JSON)
-- Returns whether it was published.
if redis.call('GET', KEYS[3]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 100, '*', 'leader', ARGV[1])
return 1
