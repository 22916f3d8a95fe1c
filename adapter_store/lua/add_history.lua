-- Add counts to the buckets of time that they fell in, once.
-- KEYS: who counts -> the newest batch that was added, then one bucket per following group
-- ARGV: the batch's number, seconds that it is remembered; then per bucket its seconds to live and
-- how many pairs follow; then field, amount, ...
-- A bucket outlives its last count by its whole time to live, so it is complete while it is read.
if tonumber(redis.call('GET', KEYS[1]) or '-1') >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
local at = 3
for i = 2, #KEYS do
  local live_s, pairs_n = ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  for _ = 1, pairs_n do
    redis.call('HINCRBYFLOAT', KEYS[i], ARGV[at], ARGV[at + 1])
    at = at + 2
  end
  if pairs_n > 0 then redis.call('EXPIRE', KEYS[i], live_s) end
end
return 1
