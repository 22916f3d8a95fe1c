-- Append to the journal what the planners of all clusters saw, once.
-- KEYS: journal, noted
-- ARGV: record (JSON), most entries, ms within which the same is not told again
if redis.call('SET', KEYS[2], 1, 'NX', 'PX', ARGV[3]) then
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'record', ARGV[1])
end
