"""The only way to Redis (or Valkey): bounded, without retries, behind a breaker. It may always be absent.

redis-py's own defaults wait without bound or retry for seconds; a request must not. Every caller of `call` has an
answer for `RedisUnavailable`, because Redis never holds the only copy of anything.
"""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from prometheus_client import Counter, Gauge
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from app.kernel.settings import RedisSettings

T = TypeVar("T")

_calls_total = Counter("app_redis_calls", "Round trips to Redis.", ["outcome"])
_breaker_open = Gauge("app_redis_breaker_open", "Whether the breaker is open.", multiprocess_mode="livemax")
_calls_ok = _calls_total.labels("ok")
_calls_failed = _calls_total.labels("failed")
_calls_refused = _calls_total.labels("refused")


class RedisUnavailable(Exception):
    """Redis did not answer in time, refused, or the breaker is open."""


class RedisGateway:
    """One per process. `client` is for pipelines and scripts inside `call`, never outside of it."""

    def __init__(self, settings: RedisSettings) -> None:
        if settings.url is None:
            message = "the Redis URL is not set"
            raise ValueError(message)
        self._settings = settings
        self.url = settings.url.get_secret_value()
        self.client: Redis = Redis(
            connection_pool=BlockingConnectionPool.from_url(
                self.url,
                max_connections=settings.pool_size,
                timeout=settings.operation_timeout,
                socket_timeout=settings.operation_timeout,
                socket_connect_timeout=settings.connect_timeout,
                retry=Retry(NoBackoff(), 0),
                health_check_interval=0,
            )
        )
        self._failures = 0
        self._open_until = 0.0
        self.calls = 0

    @property
    def available(self) -> bool:
        """False while the breaker is open and its cool-down has not ended."""
        return self._failures < self._settings.breaker_threshold or monotonic() >= self._open_until

    async def call(self, work: Callable[["Redis"], Awaitable[T]], *, timeout: float | None = None) -> T:
        """The result of `work(client)`, in at most `timeout` seconds (default: the operation time-out, twice).

        Raises:
            RedisUnavailable: no answer in time, a connection or server error, or an open breaker.
        """
        if not self.available:
            _calls_refused.inc()
            raise RedisUnavailable
        if self._failures >= self._settings.breaker_threshold:
            # Half open: this call is the probe, and the others are refused until it is done.
            self._open_until = monotonic() + self._settings.breaker_cooldown
        self.calls += 1
        try:
            async with asyncio.timeout(timeout or 2 * self._settings.operation_timeout):
                result = await work(self.client)
        except ResponseError as error:
            # The server is there; it refuses this command (out of memory, a read-only replica, a missing script).
            self._succeeded()
            _calls_failed.inc()
            raise RedisUnavailable from error
        except (RedisError, OSError, TimeoutError) as error:
            self._failed()
            raise RedisUnavailable from error
        self._succeeded()
        _calls_ok.inc()
        return result

    async def close(self) -> None:
        await self.client.aclose()
        await self.client.connection_pool.disconnect()

    def _succeeded(self) -> None:
        if self._failures:
            self._failures = 0
            _breaker_open.set(0)

    def _failed(self) -> None:
        _calls_failed.inc()
        self._failures += 1
        if self._failures >= self._settings.breaker_threshold:
            self._open_until = monotonic() + self._settings.breaker_cooldown
            _breaker_open.set(1)
