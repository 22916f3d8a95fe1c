-- Write how far a batch is; one that has ended is open no more, and is forgotten in a while.
-- KEYS: batch, the tenant's batches, open batches
-- ARGV: progress as JSON, name among all tenants' batches, ms until it is forgotten ('' if it goes
-- on), Unix time before which the tenant's batches are forgotten
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('ZREM', KEYS[3], ARGV[2])
  return
end
redis.call('HSET', KEYS[1], 'progress', ARGV[1])
if ARGV[3] ~= '' then
  redis.call('ZREM', KEYS[3], ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[4])
end
