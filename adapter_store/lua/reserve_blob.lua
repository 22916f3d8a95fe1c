-- Keep the collector away from a blob for a while, whether its files are there already or not.
-- KEYS: reserved, condemned
-- ARGV: digest, how long in ms
-- Returns 1, or 0 while the collector is removing the files.
if is_live(KEYS[2], ARGV[1]) then return 0 end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms())
redis.call('ZADD', KEYS[1], 'GT', now_ms() + ARGV[2], ARGV[1])
return 1
