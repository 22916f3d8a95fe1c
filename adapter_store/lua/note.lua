-- Append to the journal what the planners of all clusters saw, once.
-- KEYS: journal, noted
-- ARGV: most entries, ms within which the same is not told again, then field, value, ...
if redis.call('SET', KEYS[2], 1, 'NX', 'PX', ARGV[2]) then
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 3))
end
