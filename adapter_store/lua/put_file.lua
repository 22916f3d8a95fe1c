-- Know a file of batches until it expires.
-- KEYS: file, the tenant's files, files by their end
-- ARGV: record as JSON, id, Unix time of its making, Unix time of its end, name among all tenants' files
redis.call('SET', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[2])
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[5])
