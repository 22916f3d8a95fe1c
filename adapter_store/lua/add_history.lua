-- Add counts to the buckets of time that they fell in.
-- KEYS: one bucket per step
-- ARGV: per bucket its seconds to live and how many pairs follow; then field, amount, ...
-- A bucket outlives its last count by its whole time to live, so it is complete while it is read.
local at = 1
for i = 1, #KEYS do
  local live_s, pairs_n = ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  for _ = 1, pairs_n do
    redis.call('HINCRBYFLOAT', KEYS[i], ARGV[at], ARGV[at + 1])
    at = at + 2
  end
  if pairs_n > 0 then redis.call('EXPIRE', KEYS[i], live_s) end
end
