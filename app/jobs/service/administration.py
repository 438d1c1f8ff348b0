"""What administrators do with queues and with everybody's jobs."""

from datetime import datetime
from uuid import UUID

import orjson

from app.identity.api import Actor, lock_admin, record_security_event
from app.jobs.errors import JobNotFound, QueueNotFound
from app.jobs.queries import administration as queries
from app.jobs.queries.relay import list_queue_depths
from app.jobs.queries.searching import get_search_end, search_jobs
from app.jobs.records import QUEUES, AdminJob, FailedAttempt, QueueDepth
from app.jobs.records.administration import JobDetail, JobFilter
from app.jobs.service.backlogs import COUNTED
from app.jobs.service.submitting import announce, cancel, ref_of, requeue
from app.kernel.cache import Cache
from app.kernel.clock import Clock
from app.kernel.database import Database, Tx, retries_conflicts
from app.kernel.pagination import MAX_SCANNED, Cursors, Page
from app.kernel.queue import Queue

# Of a job that was started over again and again.
_SHOWN_ATTEMPTS = 100


async def list_queues(db: Database) -> list[QueueDepth]:
    """Every queue, with what waits and runs in it; nothing is counted beyond `COUNTED`."""
    async with db.read("jobs.queues") as conn:
        return await list_queue_depths(conn, list(QUEUES), COUNTED)


@retries_conflicts
async def pause_queue(db: Database, queue: Queue, clock: Clock, actor: Actor, name: str, *, paused: bool) -> None:
    """Keeps all workers from starting jobs of a queue, or lets them again; what runs goes on. The actor's trail tells.

    Raises:
        TokenRevoked, RoleRequired: the actor is no administrator any more.
        QueueNotFound: there is no such queue.
    """
    if name not in QUEUES:
        raise QueueNotFound
    async with db.transaction("jobs.pause_queue") as tx:
        await lock_admin(tx, clock, actor)
        action = "queue_paused" if paused else "queue_resumed"
        await record_security_event(tx, clock, actor, action, data=orjson.dumps({"queue": name}).decode())
        await queries.set_queue_paused(tx, name, paused=paused)
        tx.after_commit(lambda: queue.control("queues"))


async def list_all_jobs(
    db: Database, cursors: Cursors, wanted: JobFilter, *, limit: int, cursor: str | None
) -> Page[AdminJob]:
    """A page of the jobs of all users, newest first; it may be short (`kernel.pagination`). Raises InvalidCursor."""
    scope = str(wanted)
    before = cursors.decode("jobs.all", scope, cursor, tuple[UUID])[0] if cursor is not None else None
    states = None if wanted.state_filter is None else [wanted.state_filter.state]
    is_exact = wanted.is_exact(states)
    scan_end: UUID | None = None
    async with db.read("jobs.list_all") as conn:
        if not is_exact:
            scan_end = await get_search_end(conn, wanted, states=states, before=before, count=MAX_SCANNED)
        scanned = None if is_exact else MAX_SCANNED
        found = await search_jobs(
            conn, wanted, states=states, before=before, limit=limit + 1, scan_end=scan_end, scanned=scanned
        )
    return cursors.paginate(
        "jobs.all", scope, found, lambda job: (job.id,), limit=limit, scan_end=(scan_end,) if scan_end else None
    )


async def get_job_detail(db: Database, job_id: UUID) -> JobDetail:
    """A job of any user, with its arguments, runs and files. Raises JobNotFound."""
    async with db.read("jobs.detail") as conn:
        job = await queries.get_job_detail(conn, job_id, _SHOWN_ATTEMPTS)
    if job is None:
        raise JobNotFound
    return job


async def get_any_job(db: Database, job_id: UUID) -> AdminJob:
    """A job of any user. Raises JobNotFound."""
    async with db.read("jobs.get_any") as conn:
        job = await queries.get_any_job(conn, job_id)
    if job is None:
        raise JobNotFound
    return job


async def list_attempts(db: Database, job_id: UUID) -> list[FailedAttempt]:
    """The failed runs of a job of any user, oldest first, over all its replays."""
    async with db.read("jobs.attempts") as conn:
        return await queries.list_attempts(conn, job_id)


@retries_conflicts
async def retry_any_job(db: Database, queue: Queue, cache: Cache, clock: Clock, actor: Actor, job_id: UUID) -> AdminJob:
    """Starts a failed or cancelled job of any user over. The trails of the actor and of the job's owner tell.

    Raises:
        TokenRevoked, RoleRequired: the actor is no administrator any more.
        JobNotFound, JobNotRetryable, UniqueKeyInUse
    """
    async with db.transaction("jobs.retry_any") as tx:
        await lock_admin(tx, clock, actor)
        await _tell_both(tx, clock, actor, "job_retried_by_admin", job_id)
        await requeue(tx, queue, cache, job_id, None, None)
    return await get_any_job(db, job_id)


@retries_conflicts
async def cancel_any_job(
    db: Database, queue: Queue, cache: Cache, clock: Clock, actor: Actor, job_id: UUID
) -> AdminJob:
    """Cancels a job of any user. The trails of the actor and of the job's owner tell.

    Raises:
        TokenRevoked, RoleRequired: the actor is no administrator any more.
        JobNotFound, JobFinished
    """
    async with db.transaction("jobs.cancel_any") as tx:
        await lock_admin(tx, clock, actor)
        await _tell_both(tx, clock, actor, "job_cancelled_by_admin", job_id)
        await cancel(tx, queue, cache, job_id, None)
    return await get_any_job(db, job_id)


@retries_conflicts
async def retry_failed_jobs(
    db: Database,
    queue: Queue,
    cache: Cache,
    clock: Clock,
    actor: Actor,
    *,
    kind: str | None,
    since: datetime,
    limit: int,
) -> int:
    """Starts failed jobs over in bulk; answers how many. The actor's trail tells."""
    async with db.transaction("jobs.retry_failed") as tx:
        await lock_admin(tx, clock, actor)
        changes = await queries.requeue_failed_jobs(tx, kind=kind, since=since, limit=limit)
        announce(tx, cache, *changes)
        for change in changes:
            queue.redispatch(tx, ref_of(change))
        data = orjson.dumps({"kind": kind, "since": since, "jobs": len(changes)}).decode()
        await record_security_event(tx, clock, actor, "jobs_retried_by_admin", data=data)
    return len(changes)


async def _tell_both(tx: Tx, clock: Clock, actor: Actor, action: str, job_id: UUID) -> None:
    """Adds to the trails of the actor and of the job's owner, if it has one."""
    job = await queries.get_any_job(tx, job_id)
    data = orjson.dumps({"job_id": str(job_id)}).decode()
    for user_id in {actor.user_id, job.user_id if job else None} - {None}:
        await record_security_event(tx, clock, actor, action, user_id=user_id, data=data)
