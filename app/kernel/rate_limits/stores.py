"""Where the units come from: Redis, and the process itself while Redis does not answer."""

from collections import OrderedDict
from collections.abc import Sequence
from math import floor
from time import monotonic

from app.kernel.rate_limits.buckets import LeaseGrant, LeaseRequest
from app.kernel.redis.gateway import RedisGateway, Script

# The generic cell rate algorithm (GCRA, ITU-T I.371) for several keys. The value of a key is when, in microseconds of
# the server, all of its quota is there again. An order is: window (µs), quota, charged, need, want. Half of what is
# left at most is given away at once, so that the other processes get something too.
_LEASE_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local answers = {}
for i, key in ipairs(KEYS) do
  local window, quota, charged = tonumber(ARGV[i * 5 - 4]), tonumber(ARGV[i * 5 - 3]), tonumber(ARGV[i * 5 - 2])
  local need, want = tonumber(ARGV[i * 5 - 1]), tonumber(ARGV[i * 5])
  local unit = window / quota
  local full_at = math.max(tonumber(redis.call('GET', key) or '0'), now)
  full_at = math.max(math.min(full_at + charged * unit, now + 2 * window), now)
  local left = (now + window - full_at) / unit
  local units = 0
  if want > 0 and left >= math.max(need, 1) then
    units = math.max(need, math.floor(math.min(want, math.max(left / 2, 1))))
    full_at = full_at + units * unit
    left = left - units
  end
  if full_at > now then
    redis.call('SET', key, string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000))
  else
    redis.call('DEL', key)
  end
  answers[i * 2 - 1] = string.format('%.3f', units)
  answers[i * 2] = string.format('%.3f', left)
end
return answers
"""
_MICROSECONDS = 1_000_000
_MAX_LOCAL_KEYS = 50_000


class RedisStore:
    """The quota of all processes."""

    def __init__(self, redis: RedisGateway) -> None:
        self._redis = redis
        self._script = Script(_LEASE_SCRIPT)

    async def lease(self, orders: Sequence[LeaseRequest]) -> list[LeaseGrant]:
        """One grant for each order, in one round trip.

        Raises:
            RedisUnavailable: nothing is known of what was granted.
        """
        keys = [order.key for order in orders]
        args = [
            value
            for order in orders
            for value in (
                order.policy.window * _MICROSECONDS,
                order.policy.quota,
                round(order.charged, 3),
                round(order.need, 3),
                round(order.want, 3),
            )
        ]
        answers = await self._redis.call(lambda client: self._script(client, keys, args))
        return [
            LeaseGrant(float(units), float(left), (order.need - float(left)) / order.policy.rate)
            for order, units, left in zip(orders, answers[::2], answers[1::2], strict=True)
        ]


class LocalStore:
    """This process's share of each quota, by the same algorithm."""

    def __init__(self, processes: int) -> None:
        self._share = 1 / processes
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def lease(self, orders: Sequence[LeaseRequest]) -> list[LeaseGrant]:
        now = monotonic()
        grants = [self._grant(order, now) for order in orders]
        while len(self._full_at) > _MAX_LOCAL_KEYS:
            self._full_at.popitem(last=False)
        return grants

    def _grant(self, order: LeaseRequest, now: float) -> LeaseGrant:
        window = order.policy.window
        unit = window / (order.policy.quota * self._share)
        full_at = max(self._full_at.pop(order.key, now), now)
        full_at = max(min(full_at + order.charged * unit, now + 2 * window), now)
        left = (now + window - full_at) / unit
        units = 0.0
        # A share may be less than one unit, which must do for one request nevertheless.
        need = min(max(order.need, 1.0), order.policy.quota * self._share)
        if order.want > 0 and left >= need:
            units = max(order.need, floor(min(order.want, left)))
            full_at += units * unit
            left -= units
        if full_at > now:
            self._full_at[order.key] = full_at
        return LeaseGrant(units, left, (need - left) * unit)
