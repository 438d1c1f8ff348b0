"""The clock of Redis, by which processes on several machines can say which of two moments was the earlier one."""

from math import inf
from time import monotonic

from app.kernel.redis.gateway import RedisGateway, RedisUnavailable

# Longer, and the two clocks may have drifted apart by more than a round trip.
_GOOD_FOR_SECONDS = 10.0


class RedisClock:
    """Translates moments of this process (Cristian's algorithm): the quickest of the last round trips tells how far the
    clocks are apart, and is wrong by half its duration at most.

    So a moment can be noted without waiting for Redis, which under load takes longer than what is to be told apart.
    """

    def __init__(self, redis: RedisGateway) -> None:
        self._redis = redis
        self._ahead = 0.0
        self._round_trip = inf
        self._measured_at = -inf

    async def measure(self) -> bool:
        """One more look at the clock; false without Redis."""
        asked_at = monotonic()
        try:
            seconds, microseconds = await self._redis.call(lambda client: client.time())
        except RedisUnavailable:
            return False
        told_at = monotonic()
        round_trip = told_at - asked_at
        if round_trip <= self._round_trip or told_at - self._measured_at > _GOOD_FOR_SECONDS:
            self._ahead = int(seconds) + int(microseconds) / 1_000_000 - (asked_at + told_at) / 2
            self._round_trip = round_trip
            self._measured_at = told_at
        return True

    def microseconds(self, moment: float) -> int:
        """What the clock of Redis showed at `moment` of `time.monotonic`."""
        return round((moment + self._ahead) * 1_000_000)
