"""What a process owns and its modules share, and how a router gets at it."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.kernel.batching.point_reads import PointReads
from app.kernel.cache import Cache
from app.kernel.clock import Clock
from app.kernel.database import Database
from app.kernel.database.incarnation import Incarnation
from app.kernel.fairness.threads import FairThreads
from app.kernel.pagination import Cursors
from app.kernel.queue import Queue
from app.kernel.redis.bus import Bus
from app.kernel.redis.gateway import RedisGateway
from app.kernel.sealing import Keys
from app.kernel.settings import HttpSettings
from app.kernel.webhook_subscribers import WebhookSubscribers


@dataclass(frozen=True, slots=True)
class Resources:
    """Open for as long as the process runs. Where a role has no server of its own, it shares `redis` and `bus`.

    `computing` is for what takes Python longer than a millisecond.
    """

    db: Database
    reads: PointReads
    redis: RedisGateway
    cache_redis: RedisGateway
    limits_redis: RedisGateway
    bus: Bus
    cache_bus: Bus
    cache: Cache
    queue: Queue
    clock: Clock
    keys: Keys
    cursors: Cursors
    http: HttpSettings
    webhook_subscribers: WebhookSubscribers
    incarnation: Incarnation
    computing: FairThreads


async def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(_resources)]
