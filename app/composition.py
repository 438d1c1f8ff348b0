"""Builds what a process owns out of its settings: the one place where kernel and modules are plugged together."""

import asyncio
from urllib.parse import urlsplit

from pydantic import SecretStr

from app.jobs.api import insert_jobs, list_webhook_subscribers
from app.kernel.batching.point_reads import PointReads
from app.kernel.cache import Cache
from app.kernel.cache.wal_positions import WalPositions
from app.kernel.clock import Clock, SteadyClock
from app.kernel.database import Database
from app.kernel.database.incarnation import Incarnation
from app.kernel.errors import Unavailable
from app.kernel.fairness.threads import FairThreads
from app.kernel.ids import UserId
from app.kernel.observability.telemetry import get_logger
from app.kernel.pagination import Cursors
from app.kernel.queue import Queue
from app.kernel.redis.bus import Bus
from app.kernel.redis.cluster import ClusterGateway
from app.kernel.redis.gateway import Memory, RedisGateway
from app.kernel.resources import Resources
from app.kernel.sealing import Keys
from app.kernel.settings import HttpSettings, RedisSettings
from app.kernel.webhook_subscribers import WebhookSubscribers
from app.settings import Settings
from app.users import api as users

_logger = get_logger(__name__)
# Requests that wait for the thread with their bodies.
_MAX_COMPUTATIONS = 64

CACHED_PATHS = (
    "/v1/overview",
    "/v1/users/me",
    "/v1/users/me/preferences",
    "/v1/users/me/events",
    "/v1/users/me/events/summary",
)
"""What the routers declare as cached, for the worker, which knows no routers."""


# Loopback, link-local and private addresses, and those shared behind one carrier (RFC 6598), as in some clusters.
_PRIVATE = (
    *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"),
    *("::1/128", "fe80::/10", "fc00::/7"),
)


def _with_operator_networks(settings: Settings) -> HttpSettings:
    if settings.http.operator_networks is not None or not settings.is_production:
        return settings.http
    return settings.http.model_copy(update={"operator_networks": _PRIVATE})


def make_resources(settings: Settings, *, application_name: str, clock: Clock | None = None) -> Resources:
    """Everything shared, wired but not yet connected. Subscribe to the bus before `open_resources`."""
    clock = clock or SteadyClock()
    redis = RedisGateway(settings.redis)
    bus = Bus(redis)
    cache_redis = _own_server(settings.redis, settings.redis.cache_url, cluster=settings.redis.cache_cluster) or redis
    # The cache tells the other processes what was forgotten by the server that it is on.
    cache_bus = bus if cache_redis is redis else Bus(cache_redis)
    db = Database(settings.database, application_name=application_name)
    incarnation = Incarnation()
    cache = Cache(settings.cache, cache_redis, cache_bus, incarnation)
    cache.bind(db)
    positions = WalPositions(redis, incarnation)
    db.bind_positions(positions)
    servers = [
        RedisGateway(settings.redis.model_copy(update={"url": url})) if url.get_secret_value() != redis.url else redis
        for url in settings.jobs.redis_urls
    ]
    queue = Queue(insert_jobs, redis, shards=settings.jobs.shards, window=settings.jobs.window, servers=servers)
    queue.bind(db)
    keys = Keys(settings.secret_key.get_secret_value())
    webhook_subscribers = WebhookSubscribers(db, bus, queue, list_webhook_subscribers)
    cursors = Cursors(keys.derive("cursor"))
    return Resources(
        db=db,
        reads=PointReads(db),
        redis=redis,
        cache_redis=cache_redis,
        limits_redis=_own_server(settings.redis, settings.redis.limits_url) or redis,
        bus=bus,
        cache_bus=cache_bus,
        cache=cache,
        queue=queue,
        clock=clock,
        keys=keys,
        cursors=cursors,
        http=_with_operator_networks(settings),
        webhook_subscribers=webhook_subscribers,
        incarnation=incarnation,
        computing=FairThreads(
            "computing",
            1,
            queue=_MAX_COMPUTATIONS,
            per_caller=_MAX_COMPUTATIONS // 4,
            overloaded=Unavailable,
            holds_interpreter=True,
        ),
    )


async def open_database(resources: Resources) -> None:
    """Connects to PostgreSQL, as far as it is there, and learns which life it leads."""
    await resources.db.open()
    await resources.incarnation.start(resources.db)


async def open_resources(resources: Resources) -> None:
    """Connects, as far as there is something to connect to."""
    await asyncio.gather(open_database(resources), *(bus.start() for bus in {resources.bus, resources.cache_bus}))


async def memory_findings(resources: Resources) -> list[tuple[str, Memory, str | None]]:
    """Of each Redis server that tells: where it is, what it does when it is full, and why that is wrong, if it is."""
    gateways = {resources.redis, resources.limits_redis, *resources.queue.servers}
    keeping = {_place(gateway): gateway for gateway in gateways}
    # A policy is that of a whole server, not of one of its databases.
    servers = {_place(resources.cache_redis): resources.cache_redis} | keeping
    answers = await asyncio.gather(*(gateway.memory() for gateway in servers.values()), return_exceptions=True)
    return [
        (place, memory, memory.problem(is_cache_only=place not in keeping))
        for place, memory in zip(servers, answers, strict=True)
        if isinstance(memory, Memory)
    ]


async def warn_of_eviction(resources: Resources) -> None:
    """Logs which Redis server throws away what it should keep, or keeps what it should throw away."""
    for place, memory, problem in await memory_findings(resources):
        if problem is not None:
            _logger.warning("redis.maxmemory_policy_unsuitable", server=place, policy=memory.policy, reason=problem)


async def close_resources(resources: Resources) -> None:
    await resources.computing.close()
    await resources.webhook_subscribers.close()
    await resources.incarnation.close()
    await resources.cache.close()
    await resources.reads.close()
    for bus in {resources.bus, resources.cache_bus}:
        await bus.close()
    await resources.db.close()
    await resources.queue.close()
    for redis in {resources.redis, resources.cache_redis, resources.limits_redis}:
        await redis.close()


def _place(gateway: RedisGateway) -> str:
    parts = urlsplit(gateway.url)
    return f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path


def _own_server(settings: RedisSettings, url: SecretStr | None, *, cluster: bool = False) -> RedisGateway | None:
    if url is None:
        return None
    settings = settings.model_copy(update={"url": url})
    return ClusterGateway(settings) if cluster else RedisGateway(settings)


async def drop_copies(cache: Cache, user_id: UserId) -> None:
    """Removes the answers that the cache has of a user whose account is purged."""
    await cache.drop(user_id, CACHED_PATHS, (users.profile_tag(user_id), users.events_tag(user_id), f"jobs:{user_id}"))
