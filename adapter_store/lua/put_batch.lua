-- Keep the order of a batch, and that it has to be worked on.
-- KEYS: batch, the tenant's batches, open batches, the newest batches
-- ARGV: order as JSON, id, Unix time of its making, name among all tenants' batches, how many
-- are shown as the newest
redis.call('HSET', KEYS[1], 'order', ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[2])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[4])
redis.call('ZADD', KEYS[4], ARGV[3], ARGV[4])
redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -1 - ARGV[5])
