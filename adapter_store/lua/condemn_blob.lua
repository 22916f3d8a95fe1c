-- Allow the collector to remove a blob, if no version uses it and no registration is about to.
-- KEYS: blob, reserved, condemned
-- ARGV: digest, how long in ms; 0 only asks
-- Returns 1 when the files may go, else 0.
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now_ms())
if redis.call('SCARD', KEYS[1]) > 0 or redis.call('ZCARD', KEYS[2]) > 0 then return 0 end
if ARGV[2] ~= '0' then redis.call('ZADD', KEYS[3], now_ms() + ARGV[2], ARGV[1]) end
return 1
