-- Become, or stay, the one who makes plans. A new leader gets a higher number than all before it.
-- KEYS: leader, fence, plan, plans
-- ARGV: who, term in ms
-- Returns the leader's number, or 0 when somebody else leads.
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local number = leader and redis.call('GET', KEYS[2]) or redis.call('INCR', KEYS[2])
forget_with_cluster(KEYS[2], KEYS[3], KEYS[4])
return tonumber(number)
