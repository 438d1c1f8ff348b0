"""What one worker at a time does for all: brings rows to Redis that are not there, and takes jobs from dead workers.

The leader holds a session lock in Postgres; when its connection ends, another worker takes over. Every step may be
repeated or done by two leaders at once without harm, because only the claim decides which worker runs a job.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from time import monotonic
from uuid import UUID, uuid4

from prometheus_client import Counter, Gauge

from app.jobs.queries import relay as queries
from app.jobs.queries.webhook_endpoints import count_open_breakers
from app.jobs.records import MAX_RESCUES, State
from app.jobs.service.backlogs import COUNTED, publish_backlogs
from app.jobs.service.publishing import publish_job_ends
from app.jobs.service.scheduling import Schedule, run_schedules, store_schedules
from app.jobs.service.submitting import Kinds, announce, ref_of
from app.jobs.service.turns import Turns
from app.jobs.settings import JobsSettings
from app.kernel.background import Background
from app.kernel.cache import Cache
from app.kernel.clock import Clock
from app.kernel.database import Database, DirectConn, in_batches, retries_conflicts
from app.kernel.errors import Unavailable
from app.kernel.observability.telemetry import get_logger
from app.kernel.queue import JobRef, Queue
from app.kernel.redis.bus import Bus
from app.kernel.redis.gateway import RedisUnavailable

_logger = get_logger(__name__)

_redispatched_total = Counter(
    "onehop_jobs_redispatched", "Job ids dispatched again by the relay, by reason.", ["reason"]
)
_rescued_total = Counter("onehop_jobs_rescued", "Jobs rescued from workers with an expired lease.")
_depth = Gauge(
    "onehop_jobs_depth_jobs", "Runnable and running jobs.", ["queue", "state"], multiprocess_mode="mostrecent"
)
_oldest = Gauge(
    "onehop_jobs_oldest_runnable_seconds",
    "Age of the oldest runnable job in seconds.",
    ["queue"],
    multiprocess_mode="mostrecent",
)
_open_breakers = Gauge(
    "onehop_jobs_webhook_open_breakers",
    "Webhook endpoints with an open circuit breaker.",
    multiprocess_mode="mostrecent",
)
_leads = Gauge(
    "onehop_jobs_relay_leader_processes", "1 in the process that leads the relay.", multiprocess_mode="livesum"
)

_TICK_SECONDS = 0.5
_MOVING_SECONDS = 0.02
_EPOCH_SECONDS = 1.0
_RESCUE_SECONDS = 5.0
_SWEEP_SECONDS = 15.0
_GAUGE_SECONDS = 5.0
_SCHEDULES_SECONDS = 1.0
_FOLLOWER_SECONDS = 1.0
_FROZEN_SECONDS = 10.0
_LOST_AFTER_SECONDS = 15.0
_REFILL = 500
_STAGED_A_TURN = 2000
_MOST_BATCHES = 20
_NO_USER = UUID(int=0)
_FROM_THE_BEGINNING = (datetime(1970, 1, 1, tzinfo=UTC), _NO_USER)


class Relay:
    """One per worker process; the one that leads works, the others wait."""

    def __init__(
        self,
        db: Database,
        cache: Cache,
        queue: Queue,
        bus: Bus,
        *,
        clock: Clock,
        settings: JobsSettings,
        queues: Sequence[str],
        turns: Turns,
        kinds: Kinds,
        schedules: Sequence[Schedule],
    ) -> None:
        self._db = db
        self._bus = bus
        self._cache = cache
        self._queue = queue
        self._clock = clock
        self._settings = settings
        self._queues = tuple(queues)
        self._kinds = kinds
        self._schedules = schedules
        self._swept_until = dict.fromkeys(queues, _FROM_THE_BEGINNING)
        self._turns = turns

    async def run(self) -> None:
        """Leads whenever no other worker does, for ever."""
        while True:
            try:
                async with self._db.connect("jobs.relay") as conn:
                    await self._lead(conn)
            except (Unavailable, RedisUnavailable) as error:
                _logger.warning("jobs.relay_interrupted", error=type(error).__name__)
            except Exception:
                _logger.exception("jobs.relay_failed")
            _leads.set(0)
            await asyncio.sleep(_FOLLOWER_SECONDS)

    async def _lead(self, conn: DirectConn) -> None:
        # A leader that is frozen asks nothing, so Postgres ends its session, and with it the lock.
        await queries.limit_idle_session(conn, min(self._settings.lease, _FROZEN_SECONDS))
        if not await queries.try_lead(conn):
            return
        _leads.set(1)
        _logger.info("jobs.relay_elected")
        background = Background()
        background.spawn(self._observe_for_ever())
        try:
            await self._work(conn)
        finally:
            await background.close()

    async def _work(self, conn: DirectConn) -> None:
        """No step keeps the others from being done; only the loss of `conn`, and with it of the lock, ends this."""
        # Workers that outlived an outage of Postgres get time for a heartbeat before their jobs are taken away.
        next_rescue = monotonic() + min(2 * self._settings.heartbeat, self._settings.lease)
        next_epoch = next_sweep = next_schedules = 0.0
        next_due: float | None = 0.0
        database_time = await queries.get_time(conn)
        await self._try("store_schedules", store_schedules(self._db, database_time, self._schedules))
        while True:
            now = monotonic()
            if now >= next_epoch:
                next_epoch = now + _EPOCH_SECONDS
                await self._try("check_epoch", self.check_epoch(conn))
            if now >= next_rescue:
                next_rescue = now + min(_RESCUE_SECONDS, self._settings.lease)
                await self._try("rescue", self.rescue())
            if now >= next_sweep:
                next_sweep = now + _SWEEP_SECONDS
                await self._try("sweep", self.sweep())
            if now >= next_schedules:
                next_schedules = now + _SCHEDULES_SECONDS
                database_time = await queries.get_time(conn)
                await self._try("run_schedules", run_schedules(self._db, self._queue, database_time, self._kinds))
            staged: int | None = 0
            if next_due is not None and next_due <= 0:
                staged = await self._try("stage", self.stage())
            moved = await self._try("refill", self.refill())
            # While a backlog moves there is no pause; the question also proves that the lock is still held.
            next_due = await queries.get_next_due(conn, self._queues)
            if staged is None or moved is None:
                await asyncio.sleep(_TICK_SECONDS)
            else:
                await asyncio.sleep(_MOVING_SECONDS if moved else _pause(next_due))

    async def _observe_for_ever(self) -> None:
        while True:
            await self._try("observe", self.observe())
            await asyncio.sleep(_GAUGE_SECONDS)

    async def _try(self, name: str, step: Awaitable[int | None]) -> int | None:
        """How many the step has moved, 0 while Redis is away; None if it failed, which is logged."""
        try:
            return await step or 0
        except RedisUnavailable:
            return 0
        except Unavailable as error:
            _logger.warning("jobs.relay_step_interrupted", step=name, error=type(error).__name__)
        except Exception:
            _logger.exception("jobs.relay_step_failed", step=name)
        return None

    async def stage(self) -> int:
        """Marks jobs whose time has come as due; answers how many. Needs no Redis."""
        async with self._db.statement("jobs.stage") as tx:
            return await queries.stage_jobs(tx, self._queues, _STAGED_A_TURN)

    async def refill(self) -> int:
        """Brings due rows to Redis, as far as each queue's window has room; answers how many."""
        async with self._db.read("jobs.waiting_queues") as conn:
            queues = await queries.list_waiting_queues(conn, self._queues)
        moved = 0
        for queue in queues:
            room = self._queue.window * self._queue.shards - sum(await self._queue.depths(queue))
            if room <= 0:
                continue
            async with self._db.statement("jobs.refill") as tx:
                jobs = await self._turns.take(tx, queue, min(room, _REFILL))
            moved += await self._dispatch([JobRef(job.id, job.queue, job.user_id, job.priority) for job in jobs], "due")
        return moved

    @retries_conflicts
    async def rescue(self) -> int:
        """Takes jobs from workers that have let their lease end; answers how many."""
        async with self._db.transaction("jobs.rescue") as tx:
            changes = await queries.rescue_jobs(tx, max_rescues=MAX_RESCUES, limit=_REFILL)
            await publish_job_ends(tx, self._queue, changes, self._is_public, self._clock.now())
            announce(tx, self._cache, *changes)
            for change in changes:
                if change.state == State.QUEUED:
                    self._queue.redispatch(tx, ref_of(change))
        if changes:
            _rescued_total.inc(len(changes))
            _logger.warning("jobs.rescued", count=len(changes))
        return len(changes)

    def _is_public(self, kind: str) -> bool:
        return kind in self._kinds and self._kinds[kind].public

    async def sweep(self) -> int:
        """Looks for ids that should be in Redis and are not; answers how many were brought there."""
        found = 0
        for queue in self._queues:
            for _ in range(_MOST_BATCHES):
                found += await self._sweep_batch(queue)
                if self._swept_until[queue] is _FROM_THE_BEGINNING:
                    break
        return found

    async def _sweep_batch(self, queue: str) -> int:
        async with self._db.read("jobs.sweep") as conn:
            jobs = await queries.list_dispatched_jobs(
                conn, queue, after=self._swept_until[queue], seconds=_LOST_AFTER_SECONDS, limit=_REFILL
            )
        # The next look goes on where this one ended, and starts over at the end of the list. Jobs that were handed out
        # together have the same moment, so the id belongs to it.
        is_end = len(jobs) < _REFILL
        self._swept_until[queue] = _FROM_THE_BEGINNING if is_end else (jobs[-1].dispatched_at, jobs[-1].id)
        missing = await self._queue.missing([JobRef(job.id, job.queue, job.user_id, job.priority) for job in jobs])
        return await self._dispatch(missing, "lost")

    async def check_epoch(self, conn: DirectConn) -> bool:
        """Notices an emptied or replaced Redis and hands all queued rows back to `refill`; answers whether it did."""
        known = await queries.get_epoch(conn)
        if known is not None and set(await self._queue.read_epochs()) == {str(known)}:
            return False
        # Until both have the new epoch they differ, and all of this is done again. What is put in meanwhile has gone to
        # the new Redis already, and going there twice does no harm.
        count = await in_batches(self._db, "jobs.undispatch_all", queries.undispatch_some)
        epoch = uuid4()
        async with self._db.statement("jobs.new_epoch") as tx:
            await queries.set_epoch(tx, epoch)
        await self._queue.write_epoch(str(epoch))
        if count:
            _logger.warning("jobs.redis_was_emptied", queued=count)
        return True

    async def observe(self) -> None:
        """Sets the gauges, and tells the API processes."""
        async with self._db.read("jobs.depths") as conn:
            depths = await queries.list_queue_depths(conn, self._queues, COUNTED)
            _open_breakers.set(await count_open_breakers(conn))
        for depth in depths:
            _depth.labels(depth.queue, "waiting").set(depth.waiting)
            _depth.labels(depth.queue, "running").set(depth.running)
            _oldest.labels(depth.queue).set(depth.oldest_seconds or 0)
        await publish_backlogs(self._bus, depths)

    async def _dispatch(self, refs: Sequence[JobRef], reason: str) -> int:
        """Answers how many got there; the others are handed back."""
        left = await self._queue.dispatch(refs)
        if left:
            await self._undispatch([ref.id for ref in left])
        moved = len(refs) - len(left)
        _redispatched_total.labels(reason).inc(moved)
        return moved

    async def _undispatch(self, ids: list[UUID]) -> None:
        async with self._db.statement("jobs.undispatch") as tx:
            await queries.undispatch_jobs(tx, ids)


def _pause(next_due: float | None) -> float:
    """Until the next job falls due, at most one tick."""
    return _TICK_SECONDS if next_due is None else min(_TICK_SECONDS, max(_MOVING_SECONDS, next_due))
