-- What every script may use; put before each of them when they are loaded.

-- Append to the stream of changes; returns the event's id.
local function tell(events, sequence, kind, name)
  local number = redis.call('INCR', sequence)
  return redis.call('XADD', events, 'MAXLEN', '~', 100000, '*',
    'sequence', number, 'kind', kind, 'name', name)
end

-- The server's clock, as Unix time in ms.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Whether an entry of a sorted set of deadlines has not run out.
local function is_live(deadlines, member)
  local deadline = redis.call('ZSCORE', deadlines, member)
  return deadline and tonumber(deadline) > now_ms()
end
