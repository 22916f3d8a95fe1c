-- Store a card and one of its versions, and tell everyone.
-- `latest` moves to the version; `stable` does, too, when asked to or when there is none yet.
-- KEYS: adapter, names, events, sequence, blob, issued, reserved
-- ARGV: name, card (JSON), version (JSON without number), digest, mode (create | update | upsert),
--   expected revision or '', '1' to make it stable
-- Returns {number, event id, 1 when the version is new}, or an error
-- EXISTS | MISSING | STALE | ROLLING | UNRESERVED.
local exists = redis.call('EXISTS', KEYS[1]) == 1
if ARGV[5] == 'create' and exists then return redis.error_reply('EXISTS') end
if ARGV[5] == 'update' and not exists then return redis.error_reply('MISSING') end
if ARGV[6] ~= '' and redis.call('HGET', KEYS[1], 'revision') ~= ARGV[6] then
  return redis.error_reply('STALE')
end
-- Without a reservation the collector may have removed the files.
if not is_live(KEYS[7], ARGV[4]) then return redis.error_reply('UNRESERVED') end

local number = nil
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, 8) == 'version:' then
    local version = cjson.decode(fields[i + 1])
    if version.digest == ARGV[4] then number = version.number end
  end
end

local stable = redis.call('HGET', KEYS[1], 'alias:stable')
local promote = ARGV[7] == '1' or not stable
if promote and redis.call('HEXISTS', KEYS[1], 'rollout') == 1 then
  return redis.error_reply('ROLLING')
end

local is_new = number == nil
if is_new then
  number = redis.call('HINCRBY', KEYS[6], ARGV[1], 1)
  local version = string.gsub(ARGV[3], '^{', '{"number":' .. number .. ',')
  redis.call('HSET', KEYS[1], 'version:' .. number, version)
  redis.call('SADD', KEYS[5], ARGV[1] .. '@' .. number)
end
redis.call('HSET', KEYS[1], 'card', ARGV[2], 'alias:latest', number)
if promote and tostring(number) ~= stable then
  if stable then
    local previous = cjson.decode(redis.call('HGET', KEYS[1], 'previous') or '[]')
    table.insert(previous, tonumber(stable))
    if #previous > 20 then table.remove(previous, 1) end
    redis.call('HSET', KEYS[1], 'previous', cjson.encode(previous))
  end
  redis.call('HSET', KEYS[1], 'alias:stable', number)
end
redis.call('ZREM', KEYS[7], ARGV[4])  -- the version itself keeps the blob from now on
redis.call('ZADD', KEYS[2], 0, ARGV[1])
redis.call('HINCRBY', KEYS[1], 'revision', 1)
local event = tell(KEYS[3], KEYS[4], 'put', ARGV[1])
return {number, event, is_new and 1 or 0}
