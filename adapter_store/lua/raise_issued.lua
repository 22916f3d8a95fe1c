-- Version numbers that were given elsewhere are not given here again.
-- KEYS: issued
-- ARGV: name and highest number of each
for i = 1, #ARGV, 2 do
  local here = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '0')
  if tonumber(ARGV[i + 1]) > here then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
