"""The background worker: arq's Worker (see `kernel.queue.consumer`) and the jobs module's executor. Only wiring."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

from app import __version__
from app.composition import close_resources, drop_copies, make_resources, open_database
from app.identity.api import IDENTITY_KINDS, AccountPurge, confirm_secret
from app.jobs.api import (
    JOB_KINDS,
    SCHEDULES,
    ArtifactStore,
    Eraser,
    Executor,
    JobServices,
    JobWatch,
    MailOutbox,
    Relay,
    Turns,
    WebhookDeliverer,
    WebhookSender,
    WorkerHealth,
    delete_abandoned_folders,
    queue_shares,
    report_worker,
    report_worker_end,
    use_fonts,
    user_caps,
)
from app.kernel.background import Background
from app.kernel.clock import Clock
from app.kernel.database import Database, follow_database_time
from app.kernel.mail import Mailer, make_transport
from app.kernel.metric_history import REPORT_SECONDS, MetricReporter
from app.kernel.observability.build import announce_build
from app.kernel.observability.gc_tuning import rare_collections
from app.kernel.observability.probes import probes_served
from app.kernel.observability.telemetry import configure_logging, get_logger
from app.kernel.observability.watchdog import watched_loop
from app.kernel.queue import JobKind, Queue
from app.kernel.queue.consumer import consume
from app.kernel.queue.slots import Runner
from app.kernel.redis.gateway import RedisGateway
from app.settings import Settings

_logger = get_logger(__name__)

# Handlers share the pool with each other and can wait for it; a request could not.
_ACQUIRE_TIMEOUT = 5.0
_STOP_WITHIN = 5.0
_RESTART_AFTER = 0.5
# How long a worker waits for the database before it goes on without.
_SECRET_SECONDS = 2.0


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
            _logger.warning("jobs.worker_jobs_abandoned", running=len(self.runner.tasks))
        _logger.info("jobs.worker_drained", seconds=round(monotonic() - started, 3))


async def run(settings: Settings, kinds: Mapping[str, JobKind[Any]] = JOB_KINDS) -> None:
    """Works until SIGTERM or SIGINT; then short jobs end, long ones are handed back without a used attempt."""
    configure_logging(settings.log, production=settings.is_production)
    announce_build(__version__, settings.commit)
    if settings.is_production and settings.jobs.seller_name is None:
        _logger.warning("jobs.seller_unset", seller=settings.name, action="Set APP_JOBS_SELLER_NAME.")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    try:
        async with open_worker(settings, kinds) as worker, _probes_served(worker):
            _logger.info("jobs.worker_ready", slots=worker.runner.slots, kinds=sorted(kinds))
            with rare_collections(), watched_loop(settings.loop.max_stall):
                await stop.wait()
                await worker.drain()
    finally:
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signum)


@asynccontextmanager
async def open_worker(
    settings: Settings, kinds: Mapping[str, JobKind[Any]] = JOB_KINDS, *, clock: Clock | None = None
) -> AsyncIterator[Worker]:
    """Everything a worker needs, and the loops that never end. `kinds` are known beside those of the modules."""
    jobs = settings.jobs
    database = settings.database.model_copy(update={"acquire_timeout": _ACQUIRE_TIMEOUT})
    resources = make_resources(
        settings.model_copy(update={"database": database}), application_name="onehop-worker", clock=clock
    )
    db, redis, queue, cache, clock = resources.db, resources.redis, resources.queue, resources.cache, resources.clock
    watch = JobWatch(resources.bus)
    watch.attach(db)
    store = ArtifactStore(jobs, settings.data_dir)
    mailer = Mailer(settings.mail, make_transport(settings.mail, settings.data_dir / "mailbox"), clock, settings.name)
    outbox = MailOutbox(mailer, resources.keys, settings.mail)
    sender = WebhookSender(jobs)
    use_fonts(jobs.font_paths)
    others = (
        store,
        outbox,
        WebhookDeliverer(sender, resources.keys),
        jobs,
        settings.identity,
        settings.users,
        AccountPurge(Eraser(store, outbox).erase, partial(drop_copies, cache)),
    )
    services = JobServices(
        db=db,
        cache=cache,
        queue=queue,
        clock=clock,
        mail=outbox,
        store=store,
        keys=resources.keys,
        product=settings.name,
        base_url=settings.base_url,
        artifact_days=jobs.artifact_days,
        user_file_bytes=jobs.user_file_bytes,
        others={type(service): service for service in others},
    )
    kinds = {**IDENTITY_KINDS, **JOB_KINDS, **kinds}
    queues = queue_shares(settings.database.export_pool_size)
    caps = user_caps(queues, jobs)
    worker_id = f"{socket.gethostname()}:{os.getpid()}"
    executor = Executor(
        services,
        watch=watch,
        kinds=kinds,
        settings=jobs,
        caps=caps,
        worker_id=worker_id,
    )
    relay = Relay(
        db,
        cache,
        queue,
        resources.bus,
        clock=clock,
        settings=jobs,
        queues=tuple(queues),
        turns=Turns(caps),
        kinds=kinds,
        schedules=SCHEDULES,
    )
    runner = Runner(executor, queues, jobs.slots)
    # Counted from here, so that a loop that never comes round at all is noticed too.
    runner.looked_at = dict.fromkeys(range(len(queue.urls)), monotonic())
    # The bus is left closed: a worker only sends on it. With eight of them, receiving each other's messages cost more
    # than the jobs.
    await open_database(resources)
    with suppress(TimeoutError):
        # With another secret, jobs would use their attempts up on what they cannot open.
        await asyncio.wait_for(confirm_secret(db, resources.keys), _SECRET_SECONDS)
        # Of a process that was killed and had the number of this one.
        await report_worker_end(db, worker_id)
    # Of the process before this one, if that was killed.
    await asyncio.to_thread(delete_abandoned_folders)
    endless: list[Callable[[], Awaitable[None]]] = [
        partial(follow_database_time, db, clock),
        executor.completions.write_for_ever,
        executor.completions.announce_for_ever,
        partial(executor.maintain, runner),
        relay.run,
        partial(confirm_secret, db, resources.keys),
        *(partial(consume, server, queue, runner, executor) for server in range(len(queue.urls))),
    ]
    background = Background()
    background.repeat(
        MetricReporter(db, "worker", __version__).report,
        name="telemetry.report",
        every=REPORT_SECONDS,
        rests_first=True,
    )
    background.repeat(
        partial(report_worker, db, runner, worker_id, __version__), name="jobs.workers", every=jobs.heartbeat
    )
    loops = [asyncio.create_task(_keep_running(loop)) for loop in endless]
    try:
        yield Worker(settings, db, redis, queue, runner, relay, store)
    finally:
        await background.close()
        await _stop(loops)
        # A worker that drained has none left. Others would go on with what is closed below, and open it again.
        await _stop(runner.tasks.values())
        await report_worker_end(db, worker_id)
        await mailer.close()
        await sender.close()
        await close_resources(resources)


@asynccontextmanager
async def _probes_served(worker: Worker) -> AsyncIterator[None]:
    """Health and metrics of this process over HTTP. A port that is taken must not stop any job."""
    settings = worker.settings.jobs
    if settings.metrics_port is None:
        yield
        return
    health = WorkerHealth(worker.db, worker.queue, worker.runner, settings)
    async with AsyncExitStack() as stack:
        probes = probes_served(settings.metrics_host, settings.metrics_port, live=health.live, ready=health.ready)
        try:
            await stack.enter_async_context(probes)
        except OSError as error:
            _logger.error("jobs.metrics_not_served", port=settings.metrics_port, error=str(error))  # noqa: TRY400 - the text says all
        else:
            _logger.info("jobs.metrics_served", host=settings.metrics_host, port=settings.metrics_port)
        yield


async def _keep_running(loop: Callable[[], Awaitable[None]]) -> None:
    """Starts a loop again when an unforeseen error ended it; without it a worker would look alive and do nothing."""
    while True:
        try:
            await loop()
            return
        except Exception:
            _logger.exception("jobs.loop_failed")
            await asyncio.sleep(_RESTART_AFTER)


async def _stop(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancels until it works: a cancel that arrives inside a Redis call can be swallowed there."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
