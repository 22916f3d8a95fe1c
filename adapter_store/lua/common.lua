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
