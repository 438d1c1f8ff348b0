"""Builds what a process owns out of its settings: the one place where kernel and modules are plugged together."""

import asyncio

from pydantic import SecretStr

from app.jobs.api import insert_jobs, list_listeners
from app.kernel.bus import Bus
from app.kernel.cache import Cache
from app.kernel.clock import Clock, SystemClock
from app.kernel.database import Database
from app.kernel.keys import Keys
from app.kernel.listeners import Listeners
from app.kernel.pagination import Cursors
from app.kernel.point_reads import PointReads
from app.kernel.positions import Positions
from app.kernel.queue import Queue
from app.kernel.redis import RedisGateway
from app.kernel.resources import Resources
from app.kernel.settings import RedisSettings
from app.settings import Settings


def make_resources(settings: Settings, *, application_name: str, clock: Clock | None = None) -> Resources:
    """Everything shared, wired but not yet connected. Subscribe to the bus before `open_resources`."""
    clock = clock or SystemClock()
    redis = RedisGateway(settings.redis)
    bus = Bus(redis)
    cache_redis = _own_server(settings.redis, settings.redis.cache_url, cluster=settings.redis.cache_cluster) or redis
    # The cache tells the other processes what was forgotten by the server that it is on.
    cache_bus = bus if cache_redis is redis else Bus(cache_redis)
    db = Database(settings.database, application_name=application_name)
    cache = Cache(settings.cache, cache_redis, cache_bus)
    cache.bind(db)
    positions = Positions(redis)
    db.bind_positions(positions)
    rings = [
        RedisGateway(settings.redis.model_copy(update={"url": url})) if url.get_secret_value() != redis.url else redis
        for url in settings.jobs.redis_urls
    ]
    queue = Queue(insert_jobs, redis, clock, shards=settings.jobs.shards, window=settings.jobs.window, rings=rings)
    queue.bind(db)
    keys = Keys(settings.secret_key.get_secret_value())
    listeners = Listeners(db, bus, queue, list_listeners)
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
        http=settings.http,
        listeners=listeners,
    )


async def open_resources(resources: Resources) -> None:
    """Connects, as far as there is something to connect to."""
    await resources.db.open()
    await asyncio.gather(*(bus.start() for bus in {resources.bus, resources.cache_bus}))


async def close_resources(resources: Resources) -> None:
    await resources.listeners.close()
    await resources.cache.close()
    await resources.reads.close()
    for bus in {resources.bus, resources.cache_bus}:
        await bus.close()
    await resources.db.close()
    await resources.queue.close()
    for redis in {resources.redis, resources.cache_redis, resources.limits_redis}:
        await redis.close()


def _own_server(settings: RedisSettings, url: SecretStr | None, *, cluster: bool = False) -> RedisGateway | None:
    if url is None:
        return None
    return RedisGateway(settings.model_copy(update={"url": url}), cluster=cluster)
