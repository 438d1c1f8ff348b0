"""The only way to Redis (or Valkey): bounded, without retries, behind a breaker. It may always be absent.

redis-py's own defaults wait without bound or retry for seconds; a request must not. Every caller of `call` has an
answer for `RedisUnavailable`, because Redis never holds the only copy of anything.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar, cast

from prometheus_client import Counter, Gauge
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError, ResponseError

from app.kernel.settings import RedisSettings

T = TypeVar("T")

_MEMORY_SECONDS = 2.0

_calls_total = Counter("app_redis_calls", "Round trips to Redis.", ["outcome"])
_breaker_open = Gauge("app_redis_breaker_open", "Whether the breaker is open.", multiprocess_mode="livemax")
_calls_ok = _calls_total.labels("ok")
_calls_failed = _calls_total.labels("failed")
_calls_refused = _calls_total.labels("refused")


class RedisUnavailable(Exception):
    """Redis did not answer in time, refused, or the breaker is open."""


@dataclass(frozen=True, slots=True)
class Memory:
    """`limit` in bytes; 0: none."""

    policy: str
    limit: int

    def problem(self, *, is_cache_only: bool) -> str | None:
        """Why the policy does not suit what the server is for."""
        if is_cache_only:
            is_wrong = self.policy == "noeviction" and self.limit > 0
            return "once full it takes nothing new; allkeys-lfu suits a cache" if is_wrong else None
        return None if self.policy == "noeviction" else "noeviction keeps queued job ids and quotas"


class RedisGateway:
    """One per process and server. `client` is for pipelines and scripts inside `call`, never outside of it.

    Of a `cluster` the URL names any node; all keys of one command or script must lie in one slot.
    """

    def __init__(self, settings: RedisSettings, *, cluster: bool = False) -> None:
        if settings.url is None:
            message = "the Redis URL is not set"
            raise ValueError(message)
        self._settings = settings
        self.url = settings.url.get_secret_value()
        self.is_cluster = cluster
        self.client: Redis = _cluster_client(self.url, settings) if cluster else _client(self.url, settings)
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
        except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
            self._failed()
            raise RedisUnavailable from error
        except Exception as error:
            # While it reads the map of the slots anew, the client of a cluster also fails in ways of its own.
            if not self.is_cluster:
                raise
            self._failed()
            raise RedisUnavailable from error
        self._succeeded()
        _calls_ok.inc()
        return result

    def subscriber(self) -> Redis:
        """A client with a connection of its own, for reads that wait; close it.

        Messages of a cluster reach all of its nodes, so any of them will do: another one each time.
        """
        options: dict[str, Any] = {"socket_connect_timeout": 1.0, "socket_timeout": None}
        nodes = cast("RedisCluster", self.client).get_nodes() if self.is_cluster else []
        if not nodes:
            return cast("Redis", Redis.from_url(self.url, **options))
        node = random.choice(nodes)  # noqa: S311 - any will do
        return Redis(connection_pool=ConnectionPool(**node.connection_kwargs | options))

    async def memory(self) -> "Memory":
        """What the server does when it is full; of a cluster, one of its nodes. Apart from breaker and pool.

        Raises:
            RedisUnavailable: it does not answer, or does not tell.
        """
        client = self.subscriber()
        try:
            async with asyncio.timeout(_MEMORY_SECONDS):
                info = await client.info("memory")
            return Memory(info["maxmemory_policy"], int(info["maxmemory"]))
        except (RedisError, OSError, TimeoutError, KeyError) as error:
            raise RedisUnavailable from error
        finally:
            await client.aclose()

    async def close(self) -> None:
        await self.client.aclose()
        if not self.is_cluster:
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


def _client(url: str, settings: RedisSettings) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=settings.pool_size,
        timeout=settings.operation_timeout,
        socket_timeout=settings.operation_timeout,
        socket_connect_timeout=settings.connect_timeout,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )
    return Redis(connection_pool=pool)


def _cluster_client(url: str, settings: RedisSettings) -> Redis:
    client = RedisCluster.from_url(
        url,
        max_connections=settings.pool_size,
        socket_timeout=settings.operation_timeout,
        socket_connect_timeout=settings.connect_timeout,
        # Once more after the map of the slots has been read anew; the breaker does the rest.
        cluster_error_retry_attempts=1,
        connection_error_retry_attempts=0,
        # A part of the slots is of use without the others.
        require_full_coverage=False,
    )
    # It takes the same commands.
    return cast("Redis", client)
