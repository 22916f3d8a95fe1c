-- Forget a file of batches.
-- KEYS: file, the tenant's files, files by their end
-- ARGV: id, name among all tenants' files
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[2])
