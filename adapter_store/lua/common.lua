-- What every script may use; put before each of them when they are loaded.

-- The server's clock, as Unix time in ms.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Append to the stream of changes; returns the event's id and its number, which is never given
-- twice and so serves as the adapter's new revision.
local function tell(events, sequence, kind, name)
  local number = redis.call('INCR', sequence)
  local id = redis.call('XADD', events, 'MAXLEN', '~', 100000, '*',
    'sequence', number, 'kind', kind, 'name', name)
  return id, number
end

-- Whether a deadline in a sorted set of deadlines has not passed.
local function is_live(deadlines, member)
  local deadline = redis.call('ZSCORE', deadlines, member)
  return deadline and tonumber(deadline) > now_ms()
end

-- Let keys of one Ray cluster end a day after it has: the next one has a name, and keys, of its own.
local function forget_with_cluster(...)
  for _, key in ipairs({...}) do redis.call('PEXPIRE', key, 86400000) end
end

-- Do a change, and remember its reply for a minute: a client that lost the answer asks again with
-- the same key, and must not do the change twice.
local function once(key, change)
  local earlier = redis.call('GET', key)
  if earlier then return cjson.decode(earlier)[1] end
  local reply = change()
  if type(reply) ~= 'table' or not reply.err then
    redis.call('SET', key, cjson.encode({reply}), 'PX', 60000)
  end
  return reply
end

-- Append what now holds to a stream whose newest entry does, unless somebody did so meanwhile.
-- Returns the new revision, or an error STALE; `expected` '' takes any.
local function replace_newest(stream, expected, record)
  local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)
  local revision = 0
  if newest[1] then
    local fields = newest[1][2]
    for i = 1, #fields, 2 do
      if fields[i] == 'revision' then revision = tonumber(fields[i + 1]) end
    end
  end
  if expected ~= '' and tonumber(expected) ~= revision then return redis.error_reply('STALE') end
  redis.call('XADD', stream, 'MAXLEN', '~', 100, '*', 'revision', revision + 1, 'record', record)
  return revision + 1
end
