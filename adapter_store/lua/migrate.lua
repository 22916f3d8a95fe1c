-- Bring the records of an older release forward, all at once.
-- KEYS: schema, names, events, then the adapter key of every name
-- ARGV: the schema that this release writes
-- Returns the schema that was found; nothing is touched when it is newer than ARGV[1].
local found = tonumber(redis.call('GET', KEYS[1]) or '0')
local wanted = tonumber(ARGV[1])
if found == 0 then found = redis.call('ZCARD', KEYS[2]) > 0 and 1 or wanted end
-- 1 -> 2: the plain name is answered by `stable`; until then `latest` had that part.
if found < 2 then
  for i = 4, #KEYS do
    local latest = redis.call('HGET', KEYS[i], 'alias:latest')
    if latest then redis.call('HSETNX', KEYS[i], 'alias:stable', latest) end
  end
end
-- 2 -> 3: every event has a number. Followers read a snapshot where the stream begins anew.
if found < 3 then
  local newest = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
  local is_numbered = false
  for _, field in ipairs(newest and newest[2] or {}) do
    is_numbered = is_numbered or field == 'sequence'
  end
  if not is_numbered then redis.call('DEL', KEYS[3]) end
end
if found <= wanted then redis.call('SET', KEYS[1], wanted) end
return found
