"""All buckets of a process, synchronised with the stores."""

import asyncio
import heapq
from collections.abc import Sequence
from itertools import count, islice
from time import monotonic

from prometheus_client import Counter, Gauge

from app.kernel.background import Background
from app.kernel.rate_limits.buckets import LeaseGrant, LeaseRequest, Policy, QuotaBucket
from app.kernel.rate_limits.stores import LocalStore, RedisStore
from app.kernel.redis.gateway import RedisGateway, RedisUnavailable
from app.kernel.settings import LimitsSettings

_refused = Counter("onehop_rate_limit_refused", "Requests refused by an exhausted quota.", ["policy"])
_syncs = Counter("onehop_rate_limit_exchanges", "Batched lease requests for quota units.", ["store"])
_buckets = Gauge("onehop_rate_limit_buckets", "Quota buckets held by the process.", multiprocess_mode="livesum")
_syncs_redis = _syncs.labels("redis")
_syncs_local = _syncs.labels("local")

_MAX_BUCKETS = 100_000
_MAX_BATCH = 200
_REVIEW_SECONDS = 1.0


class RateLimits:
    """One per process; `processes` share the quotas while there is no Redis.

    `longest_wait`, in seconds, bounds what a request waits for it.
    """

    def __init__(
        self,
        settings: LimitsSettings,
        redis: RedisGateway,
        *,
        processes: int,
        network_quota: int,
        longest_wait: float = 0.1,
    ) -> None:
        self._longest_wait = longest_wait
        self.caller = Policy("caller", settings.caller, settings.window)
        self.network = Policy("network", network_quota, settings.window)
        self.buckets: dict[str, QuotaBucket] = {}
        self._redis = RedisStore(redis)
        self._local = LocalStore(processes)
        self._ordering: dict[QuotaBucket, None] = {}
        self._returning: dict[QuotaBucket, None] = {}
        self._sync: asyncio.Task[None] | None = None
        # By when they are due; the number keeps buckets from being compared.
        self._reviews: list[tuple[float, int, QuotaBucket]] = []
        self._numbers = count()
        self._background = Background()

    def start(self) -> None:
        self._background.spawn(self._review_for_ever())

    async def close(self) -> None:
        """Gives back what is leased; it would be missing to the other processes until the window is over."""
        await self._background.close()
        kept = (bucket for bucket in self.buckets.values() if not bucket.is_returned and not bucket.is_negligible())
        self._returning = dict.fromkeys(kept)
        await self._sync_leases()

    def sample(self) -> None:
        """Sets the gauge."""
        _buckets.set(len(self.buckets))

    def open(self, policy: Policy, key: str) -> QuotaBucket:
        """A new bucket under `key`."""
        if len(self.buckets) >= _MAX_BUCKETS:
            del self.buckets[next(iter(self.buckets))]
        bucket = self.buckets[key] = QuotaBucket(policy, key)
        self._schedule(bucket, _REVIEW_SECONDS)
        return bucket

    async def spend(self, bucket: QuotaBucket, cost: float) -> bool:
        """Takes `cost` units, after a wait for more where none are here. False: the quota is used up.

        The fast way, taking them while they stay above `low`, is the caller's.
        """
        cost = min(cost, bucket.policy.quota)
        while bucket.tokens < cost:
            if bucket.is_refused(cost):
                _refused.labels(bucket.policy.name).inc()
                return False
            bucket.needed = max(bucket.needed, cost)
            bucket.queued += cost
            bucket.answered = answered = bucket.answered or asyncio.Event()
            self._order(bucket)
            try:
                async with asyncio.timeout(self._longest_wait):
                    await answered.wait()
            except TimeoutError:
                # Redis hangs. The caller pays as soon as Redis answers again.
                break
        bucket.tokens -= cost
        if bucket.tokens < bucket.low:
            bucket.low = 0.0
            self._order(bucket)
        return True

    def _order(self, bucket: QuotaBucket) -> None:
        if bucket.is_returned:
            # Its next review was to be when the quota is whole again, but what it leases now may lie idle before.
            bucket.is_returned = False
            self._schedule(bucket, _REVIEW_SECONDS)
        self._ordering[bucket] = None
        self._start_sync()

    def _start_sync(self) -> None:
        if self._sync is None or self._sync.done():
            self._sync = self._background.spawn(self._sync_leases())

    async def _sync_leases(self) -> None:
        """One request after the other, so that what is wanted meanwhile goes together."""
        while self._ordering or self._returning:
            buckets = list(islice(self._ordering, _MAX_BATCH))
            orders = []
            events = []
            for bucket in buckets:
                del self._ordering[bucket]
                self._returning.pop(bucket, None)
                orders.append(bucket.order())
                events.append(bucket.answered)
                bucket.answered = None
            for bucket in list(islice(self._returning, _MAX_BATCH - len(buckets))):
                del self._returning[bucket]
                buckets.append(bucket)
                orders.append(bucket.returning_order())
            try:
                for bucket, order, grant in zip(buckets, orders, await self._lease(orders), strict=True):
                    bucket.receive(order, grant)
                    if bucket.is_returned:
                        self._schedule(bucket, max(_REVIEW_SECONDS, bucket.seconds_until_full()))
            finally:
                for event in events:
                    if event is not None:
                        event.set()

    async def _lease(self, orders: Sequence[LeaseRequest]) -> list[LeaseGrant]:
        try:
            grants = await self._redis.lease(orders)
        except RedisUnavailable:
            _syncs_local.inc()
            return self._local.lease(orders)
        _syncs_redis.inc()
        return grants

    async def _review_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_REVIEW_SECONDS / 2)
            now = monotonic()
            while self._reviews and self._reviews[0][0] <= now:
                due, _, bucket = heapq.heappop(self._reviews)
                if due == bucket.due:
                    self._review(bucket)
            if self._returning:
                self._start_sync()

    def _review(self, bucket: QuotaBucket) -> None:
        """Returns idle units and drops buckets whose quota is full."""
        if bucket.was_used() or bucket in self._ordering:
            bucket.is_returned = False
            self._schedule(bucket, _REVIEW_SECONDS)
        elif bucket.is_returned or bucket.is_negligible():
            if self.buckets.get(bucket.key) is bucket:
                del self.buckets[bucket.key]
        else:
            self._returning[bucket] = None

    def _schedule(self, bucket: QuotaBucket, seconds: float) -> None:
        bucket.due = monotonic() + seconds
        heapq.heappush(self._reviews, (bucket.due, next(self._numbers), bucket))
