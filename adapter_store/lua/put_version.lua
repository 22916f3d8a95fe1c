-- Store a card and one of its versions, move the alias `latest` to it, and tell everyone.
-- KEYS: adapter, names, events, blob, issued
-- ARGV: name, card (JSON), version (JSON without number), digest, mode (create | update | upsert)
-- Returns {number, revision, event id, 1 when the version is new}, or {err = CODE}.
local exists = redis.call('EXISTS', KEYS[1]) == 1
if ARGV[5] == 'create' and exists then return redis.error_reply('EXISTS') end
if ARGV[5] == 'update' and not exists then return redis.error_reply('MISSING') end

local number = nil
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, 8) == 'version:' then
    local version = cjson.decode(fields[i + 1])
    if version.digest == ARGV[4] then number = version.number end
  end
end

local is_new = number == nil
if is_new then
  number = redis.call('HINCRBY', KEYS[5], ARGV[1], 1)
  local version = string.gsub(ARGV[3], '^{', '{"number":' .. number .. ',')
  redis.call('HSET', KEYS[1], 'version:' .. number, version)
  redis.call('SADD', KEYS[4], ARGV[1] .. '@' .. number)
end
redis.call('HSET', KEYS[1], 'card', ARGV[2], 'alias:latest', number)
redis.call('ZADD', KEYS[2], 0, ARGV[1])
local revision = redis.call('HINCRBY', KEYS[1], 'revision', 1)
local event = redis.call('XADD', KEYS[3], 'MAXLEN', '~', 100000, '*', 'kind', 'put', 'name', ARGV[1])
return {number, revision, event, is_new and 1 or 0}
