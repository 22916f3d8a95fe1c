-- Bring the records of an older release forward, all at once.
-- KEYS: schema, names, then the adapter key of every name
-- ARGV: the schema that this release writes
-- Returns the schema that was found; nothing is touched when it is newer than ARGV[1].
local found = tonumber(redis.call('GET', KEYS[1]) or '0')
local wanted = tonumber(ARGV[1])
if found == 0 then found = redis.call('ZCARD', KEYS[2]) > 0 and 1 or wanted end
-- 1 -> 2: the plain name is answered by `stable`; until then `latest` had that part.
if found < 2 then
  for i = 3, #KEYS do
    local latest = redis.call('HGET', KEYS[i], 'alias:latest')
    if latest then redis.call('HSETNX', KEYS[i], 'alias:stable', latest) end
  end
end
if found <= wanted then redis.call('SET', KEYS[1], wanted) end
return found
