"""What the server does for the ledger, in one step each."""

from __future__ import annotations

from ragaccel.cache.levels.redis.server import script

# The four keys are made together and have no end; where one is missing (a flush, an eviction), the
# ledger is lost and a new one begins, to which nothing older belongs. The keeper, a member of no
# length, keeps the set of marks in being while it has none. Other members are a namespace and a
# mark of it.
_OPEN = """
if redis.call('EXISTS', unpack(KEYS)) < 4 then
  redis.call('DEL', KEYS[4])
  redis.call('SET', KEYS[1], ARGV[1])
  redis.call('SET', KEYS[2], '0')
  redis.call('SET', KEYS[3], '0')
  redis.call('ZADD', KEYS[4], 0, '')
end
local id = redis.call('GET', KEYS[1])
"""
# When there are too many marks, an eighth goes. Every namespace may keep the same number of them,
# its newest, so only those with more lose any: one strike of the namespace takes their place.
_FOLD = """
local function fold(capacity, few)
  local all, sub = redis.call('ZRANGE', KEYS[4], 1, -1), string.sub
  local counts, sizes = {}, {}
  for at = 1, #all do
    local namespace = sub(all[at], 1, 8)
    counts[namespace] = (counts[namespace] or 0) + 1
  end
  for _, size in pairs(counts) do sizes[#sizes + 1] = size end
  table.sort(sizes)
  local room, most = capacity * 7 / 8, 0
  for at, size in ipairs(sizes) do
    most = room / (#sizes - at + 1)
    if size > most then break end
    room = room - size
  end
  if most < few then  -- so many namespaces that none has much to put together
    local floor = redis.call('ZSCORE', KEYS[4], all[math.ceil(#all / 2)])
    redis.call('ZREMRANGEBYSCORE', KEYS[4], '(0', floor)
    redis.call('SET', KEYS[3], floor)
    return
  end
  local excess, gone, last = 0, {}, {}
  for _, size in ipairs(sizes) do excess = excess + math.max(0, math.ceil(size - most)) end
  for at = 1, #all do
    if #gone == excess then break end
    local namespace = sub(all[at], 1, 8)
    if counts[namespace] > most then
      counts[namespace] = counts[namespace] - 1
      gone[#gone + 1] = all[at]
      last[namespace] = all[at]
    end
  end
  for namespace, mark in pairs(last) do
    last[namespace] = redis.call('ZSCORE', KEYS[4], mark)
  end
  for at = 1, #gone, 1000 do
    redis.call('ZREM', KEYS[4], unpack(gone, at, math.min(at + 999, #gone)))
  end
  for namespace, seq in pairs(last) do
    local whole = namespace .. namespace
    if not redis.call('ZSCORE', KEYS[4], whole) then redis.call('ZADD', KEYS[4], seq, whole) end
  end
end
"""
#: Keys of the ledger; the id of a new ledger, CAPACITY, FEW, the member of everything, members.
STRIKE = script(
    _OPEN
    + _FOLD
    + """
local seq = redis.call('INCR', KEYS[2])
for at = 5, #ARGV do
  if ARGV[at] == ARGV[4] then
    redis.call('SET', KEYS[3], seq)
    redis.call('ZREMRANGEBYSCORE', KEYS[4], '(0', '+inf')
  else
    redis.call('ZADD', KEYS[4], seq, ARGV[at])
  end
end
local capacity = tonumber(ARGV[2])
if redis.call('ZCARD', KEYS[4]) - 1 > capacity then fold(capacity, tonumber(ARGV[3])) end
return {id, seq}
"""
)
#: Keys of the ledger; the id of a new ledger, the number and the id up to which it was read.
READ = script(
    _OPEN
    + """
local since = '(0'
if id == ARGV[3] then since = '(' .. ARGV[2] end
local marks = redis.call('ZRANGEBYSCORE', KEYS[4], since, '+inf', 'WITHSCORES')
return {id, redis.call('GET', KEYS[2]), redis.call('GET', KEYS[3]), marks}
"""
)
