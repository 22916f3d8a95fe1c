-- Store a card and one of its versions, and tell everyone.
-- `latest` moves to the version; `stable` does, too, when asked to or when there is none yet.
-- KEYS: adapter, names, events, sequence, blob, issued, reserved, once
-- ARGV: name, card (JSON), version (JSON without number), reservation, mode (create | update |
--   upsert), expected revision ('' any, 0 none), '1' to make it stable, notices (JSON)
-- Returns {number, event id, 1 when the version is new, the adapter's fields}, or an error
-- EXISTS | MISSING | STALE | ROLLING | UNRESERVED.
return once(KEYS[8], function()
  local revision = redis.call('HGET', KEYS[1], 'revision')
  if ARGV[5] == 'create' and revision then return redis.error_reply('EXISTS') end
  if ARGV[5] == 'update' and not revision then return redis.error_reply('MISSING') end
  if ARGV[6] ~= '' and (revision or '0') ~= ARGV[6] then return redis.error_reply('STALE') end
  -- Without a reservation the collector may have removed the files.
  if not is_live(KEYS[7], ARGV[4]) then return redis.error_reply('UNRESERVED') end

  local new = cjson.decode(ARGV[3])
  -- The same weights with the same claims are the same version.
  local function is_same(version)
    return version.digest == new.digest
      and (version.base_fingerprint or '') == new.base_fingerprint
      and (new.signed_by == '' or version.signed_by == new.signed_by)
      and (new.lineage == cjson.null
        or (type(version.lineage) == 'table'
          and version.lineage.transformation == new.lineage.transformation
          and cjson.encode(version.lineage.parents) == cjson.encode(new.lineage.parents)))
  end
  local number = nil
  local fields = redis.call('HGETALL', KEYS[1])
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 8) == 'version:' then
      local version = cjson.decode(fields[i + 1])
      if is_same(version) then number = version.number end
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
    redis.call('HSET', KEYS[1], 'version:' .. number, version, 'notices:' .. number, ARGV[8])
    redis.call('SADD', KEYS[5], ARGV[1] .. '@' .. number)
  end
  redis.call('HSET', KEYS[1], 'card', ARGV[2], 'alias:latest', number)
  if promote and tostring(number) ~= stable then
    if stable then
      -- As `cluster/rollouts.py` does when a rollout ends.
      local previous = cjson.decode(redis.call('HGET', KEYS[1], 'previous') or '[]')
      table.insert(previous, tonumber(stable))
      if #previous > 20 then table.remove(previous, 1) end
      redis.call('HSET', KEYS[1], 'previous', cjson.encode(previous))
    end
    redis.call('HSET', KEYS[1], 'alias:stable', number)
  end
  redis.call('ZREM', KEYS[7], ARGV[4])  -- the version itself keeps the blob from now on
  redis.call('ZADD', KEYS[2], 0, ARGV[1])
  local event, sequence = tell(KEYS[3], KEYS[4], 'put', ARGV[1])
  redis.call('HSET', KEYS[1], 'revision', sequence)
  return {number, event, is_new and 1 or 0, redis.call('HGETALL', KEYS[1])}
end)
