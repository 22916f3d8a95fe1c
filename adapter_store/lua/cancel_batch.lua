-- Note when the end of a batch was asked for first, if the batch is there.
-- KEYS: batch
-- ARGV: field, Unix time
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) end
