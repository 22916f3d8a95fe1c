-- Keep the order of a batch, and that it has to be worked on.
-- KEYS: batch, the tenant's batches, open batches
-- ARGV: order as JSON, id, Unix time of its making, name among all tenants' batches
redis.call('HSET', KEYS[1], 'order', ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[2])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[4])
