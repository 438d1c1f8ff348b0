"""The background worker: arq's Worker (see `kernel.queue.consumer`) and the jobs module's executor. Only wiring."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

from app.jobs.api import JOB_KINDS, LANES, ArtifactStore, Executor, JobWatch, Relay, insert_jobs
from app.kernel.bus import Bus
from app.kernel.cache import Cache
from app.kernel.clock import SystemClock
from app.kernel.database import Database
from app.kernel.queue import JobKind, Queue
from app.kernel.queue.consumer import consume
from app.kernel.queue.slots import Runner
from app.kernel.redis import RedisGateway
from app.kernel.telemetry import configure_logging, get_logger
from app.settings import Settings

_logger = get_logger(__name__)

# Handlers share the pool with each other and can wait for it; a request could not.
_ACQUIRE_TIMEOUT = 5.0
_STOP_WITHIN = 8.0


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker at work."""

    settings: Settings
    db: Database
    redis: RedisGateway
    queue: Queue
    runner: Runner
    relay: Relay
    store: ArtifactStore

    async def drain(self) -> None:
        """Lets short jobs end and hands the others back; gives up when Postgres does not take them in time."""
        started = monotonic()
        try:
            async with asyncio.timeout(_STOP_WITHIN):
                await self.runner.drain(self.settings.jobs.drain)
        except TimeoutError:
            _logger.warning("jobs.worker_left_jobs", running=len(self.runner.tasks))
        _logger.info("jobs.worker_drained", seconds=round(monotonic() - started, 3))


async def run(settings: Settings) -> None:
    """Works until SIGTERM or SIGINT; then short jobs end, long ones are handed back without a used attempt."""
    configure_logging(settings.log, production=settings.env == "production")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    try:
        async with open_worker(settings) as worker:
            _logger.info("jobs.worker_ready", slots=worker.runner.slots, kinds=sorted(JOB_KINDS))
            await stop.wait()
            await worker.drain()
    finally:
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signum)


@asynccontextmanager
async def open_worker(settings: Settings, kinds: Mapping[str, JobKind[Any]] = JOB_KINDS) -> AsyncIterator[Worker]:
    """Everything a worker needs, and the loops that never end."""
    jobs = settings.jobs
    clock = SystemClock()
    redis = RedisGateway(settings.redis)
    bus = Bus(redis)
    cache = Cache(settings.cache, redis, bus)
    database = settings.database.model_copy(update={"acquire_timeout": _ACQUIRE_TIMEOUT})
    db = Database(database, application_name="onehop-worker")
    queue = Queue(insert_jobs, redis, clock, shards=jobs.shards, window=jobs.window)
    queue.bind(db)
    cache.bind(db)
    watch = JobWatch(bus)
    watch.attach(db)
    store = ArtifactStore(jobs, settings.data_dir)
    worker_id = f"{socket.gethostname()}:{os.getpid()}"
    executor = Executor(
        db,
        cache,
        queue,
        clock=clock,
        store=store,
        watch=watch,
        kinds=kinds,
        settings=jobs,
        worker_id=worker_id,
    )
    relay = Relay(db, cache, queue, clock, jobs, tuple(LANES))
    runner = Runner(executor, LANES, jobs.slots)
    await db.open()
    await bus.start()
    loops = [
        asyncio.create_task(loop)
        for loop in (
            executor.write_ends(),
            executor.announce(),
            executor.maintain(),
            relay.run(),
            consume(redis.url, queue, runner, executor),
        )
    ]
    try:
        yield Worker(settings, db, redis, queue, runner, relay, store)
    finally:
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await cache.close()
        await bus.close()
        await db.close()
        await redis.close()
