-- Keep the collector away from a blob for a while, whether its files are there already or not.
-- KEYS: reserved, condemned
-- ARGV: digest, reservation, how long in ms
-- Returns 1, or 0 while the collector is removing the files.
if is_live(KEYS[2], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now_ms() + ARGV[3], ARGV[2])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1
