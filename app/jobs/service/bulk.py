"""Retrying, cancelling or deleting all jobs that fit a filter: a job of its own, which goes on where it was killed.

Each batch is one transaction with the step of the job's position, so that an item is changed at most once: the position
only moves down, to older jobs, and begins at the bulk job itself. What is put in, or fails again, afterwards is not
looked at.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any
from uuid import UUID

import orjson

from app.identity.api import Actor, is_admin_at, lock_admin, record_security_event
from app.jobs.errors import JobNotFound
from app.jobs.queries import searching as queries
from app.jobs.queries.administration import get_any_job
from app.jobs.queries.positions import get_position, set_position
from app.jobs.records import AdminJob, State, Transition
from app.jobs.records.administration import STATES_OF_ACTION, BulkAction, JobFilter, Position
from app.jobs.service.storage import ArtifactStore
from app.jobs.service.submitting import UNIQUE_KEY_CONSTRAINT, announce
from app.kernel.clock import Clock
from app.kernel.database import ConstraintViolated, Database, Tx
from app.kernel.errors import Unavailable
from app.kernel.queue import JobContext, PermanentJobError, Queue, RetryJob

KIND_BULK = "jobs.bulk"
# Always admitted and always served: what it is for is to set right what fills the other queues.
QUEUE = "critical"
TIMEOUT = 3600
# Jobs that a dry run counts at most.
MOST_COUNTED = 100_000
_BATCH = 1_000
_CONFLICT_SECONDS = 1.0


def states_of(action: BulkAction, wanted: JobFilter) -> list[State]:
    """The stored states in which the action changes jobs that the filter means."""
    states = STATES_OF_ACTION[action]
    if wanted.state_filter is not None:
        states &= {wanted.state_filter.state}
    return sorted(states)


async def count_bulk(db: Database, action: BulkAction, wanted: JobFilter) -> int:
    """How many jobs the action would change now, counted up to `MOST_COUNTED`."""
    async with db.read("jobs.count_bulk") as conn:
        return await queries.count_jobs(conn, wanted, states=states_of(action, wanted), limit=MOST_COUNTED)


async def submit_bulk(
    tx: Tx, queue: Queue, clock: Clock, actor: Actor, action: BulkAction, wanted: JobFilter
) -> AdminJob:
    """Puts the bulk job in, as the actor's own. The actor's trail tells. `tx` is a transaction and begins with this.

    Raises:
        TokenRevoked, RoleRequired: the actor is no administrator any more.
    """
    version = await lock_admin(tx, clock, actor)
    named = {name: value for name, value in asdict(wanted).items() if value is not None}
    args: dict[str, Any] = orjson.loads(orjson.dumps({"action": action} | named, default=str))
    bound = args | {"version": version}
    job_id = await queue.enqueue(tx, KIND_BULK, bound, user_id=actor.user_id, queue=QUEUE, timeout_s=TIMEOUT)
    data = orjson.dumps({"job_id": str(job_id)} | args).decode()
    await record_security_event(tx, clock, actor, "jobs_changed_in_bulk", data=data)
    job = await get_any_job(tx, job_id)
    if job is None:
        raise JobNotFound
    return job


async def change_batch(
    ctx: JobContext, store: ArtifactStore, action: BulkAction, wanted: JobFilter, *, version: int
) -> bool:
    """Changes the next batch of jobs that are meant, and ends the bulk job with the last; whether it did. `version`: of
    the administrator's account when that asked for it.

    Raises:
        PermanentJobError: the account has changed since, perhaps because another person had it.
        RetryJob: a job with the unique key of one of them was put in at that moment.
    """
    states = states_of(action, wanted)
    files: list[str] = []
    try:
        async with ctx.transaction("jobs.bulk") as tx:
            if not await is_admin_at(tx, ctx.owner, version):
                raise PermanentJobError("account_changed", "The account that asked for this has changed since.")
            position = await get_position(tx, ctx.job_id)
            if position is None:
                total = await queries.count_jobs(tx, wanted, states=states, limit=MOST_COUNTED)
                position = Position(ctx.job_id, 0, 0, total)
            ids, last_id = await _next_batch(tx, wanted, states, position.last_id)
            if action == "delete":
                files = await queries.list_files_of_jobs(tx, ids)
            changes = await _CHANGES[action](tx, ids, states)
            _announce(ctx, tx, changes)
            position = replace(
                position,
                last_id=last_id,
                done=position.done + len(changes),
                skipped=position.skipped + len(ids) - len(changes),
            )
            await set_position(tx, ctx.job_id, position)
            await ctx.progress(position.done + position.skipped, max(position.total, position.done + position.skipped))
            if last_id is None:
                await ctx.complete(tx, {"done": position.done, "skipped": position.skipped})
    except ConstraintViolated as violation:
        if violation.constraint != UNIQUE_KEY_CONSTRAINT:
            raise
        raise RetryJob(_CONFLICT_SECONDS, "unique_key_in_use", "A job with the same key was put in.") from violation
    if files:
        # What is left the hourly cleaning finds, because no job has published it any more.
        with suppress(OSError, Unavailable):
            await store.delete(files)
    return last_id is None


async def _next_batch(
    tx: Tx, wanted: JobFilter, states: Sequence[State], before: UUID | None
) -> tuple[list[UUID], UUID | None]:
    """The jobs of the next batch, and behind which of all jobs the one after it begins; None: it is the last."""
    scan_end: UUID | None = None
    if not wanted.is_exact(states):
        scan_end = await queries.get_search_end(tx, wanted, states=states, before=before, count=_BATCH)
    found = await queries.search_jobs(
        tx, wanted, states=states, before=before, limit=_BATCH, scan_end=scan_end, scanned=_BATCH
    )
    return [job.id for job in found], found[-1].id if len(found) == _BATCH else scan_end


def _announce(ctx: JobContext, tx: Tx, changes: Sequence[Transition]) -> None:
    announce(tx, ctx.cache, *changes)
    for change in changes:
        if change.state == State.RUNNING:
            ctx.queue.stop_running(tx, change.id)


_CHANGES = {"retry": queries.requeue_jobs, "cancel": queries.cancel_jobs, "delete": queries.delete_jobs}
