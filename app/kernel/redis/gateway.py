"""The only way to Redis (or Valkey): bounded, without retries, behind a breaker. It may always be absent.

redis-py's own defaults wait without bound or retry for seconds; a request must not. Every caller of `call` has an
answer for `RedisUnavailable`, because Redis never holds the only copy of anything.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from time import monotonic
from traceback import clear_frames
from typing import Any, TypeVar, cast

from prometheus_client import Counter, Gauge
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import ClusterParser
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from app.kernel.settings import RedisSettings

T = TypeVar("T")

# What redis-py raises when the server is ill or gone. RuntimeError is uvloop's, where the connection was lost before a
# command was written to it.
# AttributeError is that of asyncio's own loop since Python 3.12, where the transport was closed meanwhile.
LOST_ERRORS = (RedisError, OSError, TimeoutError, RuntimeError, AttributeError)
_MEMORY_SECONDS = 2.0

_calls_total = Counter("onehop_redis_calls", "Round trips to Redis.", ["outcome"])
_breaker_open = Gauge("onehop_redis_breaker_open", "1 while the circuit breaker is open.", multiprocess_mode="livemax")
_calls_ok = _calls_total.labels("ok")
_calls_failed = _calls_total.labels("failed")
_calls_refused = _calls_total.labels("refused")


class RedisUnavailable(Exception):
    """Redis did not answer in time, refused, or the breaker is open."""


class Script:
    """A Lua script by its digest; a server that does not have it yet is sent the text once."""

    def __init__(self, text: str) -> None:
        self._text = text
        # Redis names scripts so; nothing is kept safe by it.
        self._digest = sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, client: Redis, keys: Sequence[str], args: Sequence[bytes | str | float]) -> Any:
        """For the `work` of `RedisGateway.call`. Raises what redis-py does."""
        evalsha: Any = client.evalsha
        try:
            return await evalsha(self._digest, len(keys), *keys, *args)
        except NoScriptError as error:
            _free_frames(error)
        await client.script_load(self._text)
        return await evalsha(self._digest, len(keys), *keys, *args)


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
    """One per process and server. `client` is for pipelines and scripts inside `call`, never outside of it."""

    is_cluster = False

    def __init__(self, settings: RedisSettings) -> None:
        if settings.url is None:
            message = "the Redis URL is not set"
            raise ValueError(message)
        self._settings = settings
        self.url = settings.url.get_secret_value()
        self.client: Redis = _client(self.url, settings)
        self._failures = 0
        self._open_until = 0.0
        self._is_closed = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self.calls = 0

    @property
    def available(self) -> bool:
        """False while the breaker is open and its cool-down has not ended, and once the gateway is closed."""
        if self._is_closed:
            return False
        return self._failures < self._settings.breaker_threshold or monotonic() >= self._open_until

    @property
    def is_well(self) -> bool:
        """Whether the last call was answered."""
        return not self._failures

    def channel(self, name: str) -> str:
        """`name`, apart from that of other installations on this server, whose channels know no databases."""
        number = self.client.connection_pool.connection_kwargs.get("db") or 0
        return f"{name}@{number}" if number else name

    def on_failover(self, callback: Callable[[], None]) -> None:
        """Calls `callback` when another server has taken over, which may lack the last writes.

        Of a server alone that is not known; a `Bus` on it is told that the connection has ended.
        """

    async def call(
        self,
        work: Callable[["Redis"], Awaitable[T]],
        *,
        key: str | None = None,  # noqa: ARG002 - a cluster's own `call` needs it
        timeout: float | None = None,
    ) -> T:
        """The result of `work(client)`, in at most `timeout` seconds (default: the operation time-out, twice).

        `key` is one of those that `work` touches. It matters in a cluster, where all of them must lie in one slot.

        Raises:
            RedisUnavailable: no answer in time, a connection or server error, an open breaker, or a closed gateway.
        """
        if not self.available:
            _calls_refused.inc()
            raise RedisUnavailable
        if self._failures >= self._settings.breaker_threshold:
            # Half open: this call is the probe, and the others are refused until it is done.
            self._open_until = monotonic() + self._settings.breaker_cooldown
        self.calls += 1
        self._in_flight += 1
        try:
            async with asyncio.timeout(timeout or 2 * self._settings.operation_timeout):
                result = await work(self.client)
        except ResponseError as error:
            # The server is there; it refuses this command (out of memory, a read-only replica).
            _free_frames(error)
            self._succeeded()
            _calls_failed.inc()
            raise RedisUnavailable from error
        except LOST_ERRORS as error:
            _free_frames(error)
            self._failed()
            raise RedisUnavailable from error
        finally:
            self._in_flight -= 1
            if self._is_closed and not self._in_flight:
                self._idle.set()
        self._succeeded()
        _calls_ok.inc()
        return result

    def subscriber(self) -> Redis:
        """A client with a connection of its own, for reads that wait; close it."""
        return cast("Redis", Redis.from_url(self.url, socket_connect_timeout=1.0, socket_timeout=None))

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
        except (*LOST_ERRORS, KeyError) as error:
            raise RedisUnavailable from error
        finally:
            await client.aclose()

    async def close(self) -> None:
        """Refuses further calls, waits for those under way, which their time-outs bound, and ends all connections.

        A call that still connects while the pool ends its connections would leave an open one behind.
        """
        self._is_closed = True
        if self._in_flight:
            await self._idle.wait()
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


def _free_frames(error: Exception) -> None:
    """Breaks the reference cycles of redis-py, whose functions keep the error that they raise in a variable.

    A cycle holds everything that the calls above refer to, the whole request, until the garbage collector runs.
    """
    clear_frames(error.__traceback__)


def _client(url: str, settings: RedisSettings) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=settings.pool_size,
        timeout=settings.operation_timeout,
        socket_timeout=settings.operation_timeout,
        socket_connect_timeout=settings.connect_timeout,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        # It tells apart what the nodes of a cluster refuse.
        parser_class=ClusterParser,
    )
    return Redis(connection_pool=pool)
