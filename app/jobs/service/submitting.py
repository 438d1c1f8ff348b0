"""Putting jobs in, and what their owner may do with them afterwards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from pydantic import ValidationError

from app.identity.api import Actor, lock_maker, record_security_event
from app.jobs.errors import (
    BacklogFull,
    InvalidArgs,
    JobFinished,
    JobNotFound,
    JobNotRetryable,
    UniqueKeyInUse,
    UnknownKind,
)
from app.jobs.queries import submitting as queries
from app.jobs.records import STATE_FILTERS, InsertedJob, Job, JobState, State, Transition
from app.jobs.service.backlogs import QueueBacklogs
from app.kernel.batching.group_commit import GroupCommit
from app.kernel.cache import Cache
from app.kernel.clock import Clock
from app.kernel.database import ConstraintViolated, Database, ReadConn, Tx, retries_conflicts
from app.kernel.errors import MAX_ERRORS, FieldError, Unprocessable, escape_pointer
from app.kernel.ids import UserId
from app.kernel.pagination import MAX_SCANNED, Cursors, Page
from app.kernel.queue import Enqueued, JobKind, JobRef, NewJob, Queue
from app.kernel.validation.field_codes import field_code

Kinds = Mapping[str, JobKind[Any]]
CHANGED_TOPIC = "jobs.changed"
# Kinds whose jobs the owner must be able to find in the audit trail, with the entry.
AUDITED_KINDS = {"export.account": "account_export_requested"}
FURTHEST_RUN_AT = timedelta(days=366)
UNIQUE_KEY_CONSTRAINT = "jobs_unique_key_key"


@dataclass(frozen=True, slots=True)
class Submission:
    """What a caller asks for. `args` have not been looked at."""

    kind: str
    args: Mapping[str, Any]
    run_at: datetime | None
    unique_key: str | None


@dataclass(frozen=True, slots=True)
class Submitted:
    """`created` is false when a living job with the same unique key was there already."""

    job: Job
    created: bool


def parse_args(kind: JobKind[Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in the form in which they are stored.

    Raises:
        InvalidArgs: with a pointer below `#/args` for each fault.
    """
    try:
        parsed = kind.args.model_validate_json(orjson.dumps(args))
    except orjson.JSONEncodeError as error:
        place = FieldError("#/args", "An integer does not fit into 64 bits.", "number_too_large")
        raise InvalidArgs(errors=[place]) from error
    except ValidationError as error:
        raise InvalidArgs(
            errors=[
                FieldError(
                    "/".join(["#/args", *map(escape_pointer, fault["loc"])]), fault["msg"], field_code(fault["type"])
                )
                for fault in error.errors(include_input=False, include_url=False, include_context=False)[:MAX_ERRORS]
            ]
        ) from error
    stored: dict[str, Any] = parsed.model_dump(mode="json", exclude_none=True)
    return stored


def check_run_at(run_at: datetime | None, now: datetime) -> None:
    """Raises Unprocessable: the row would be kept for more than a year before it does anything."""
    if run_at is not None and run_at - now > FURTHEST_RUN_AT:
        raise Unprocessable(errors=[FieldError("#/run_at", "Not more than a year ahead.", "too_large")])


async def submit(
    tx: Tx,
    queue: Queue,
    cache: Cache,
    kinds: Kinds,
    backlogs: QueueBacklogs,
    *,
    user_id: UserId,
    submission: Submission,
) -> Submitted:
    """Adds a public job with one statement, or finds the living one that holds the unique key.

    Raises:
        UnknownKind, InvalidArgs, BacklogFull: nothing was written.
    """
    return await submit_row(tx, queue, cache, backlogs, _new_row(queue, kinds, backlogs, user_id, submission))


async def submit_with_others(
    group: GroupCommit[NewJob, Submitted | None],
    queue: Queue,
    kinds: Kinds,
    backlogs: QueueBacklogs,
    *,
    user_id: UserId,
    submission: Submission,
) -> Submitted:
    """Adds a public job without a unique key in one commit with those of other requests.

    Raises:
        UnknownKind, InvalidArgs, BacklogFull: nothing was written.
    """
    row = _new_row(queue, kinds, backlogs, user_id, submission)
    return _accepted(await group.submit(row), backlogs, row)


def submission_group_commit(db: Database, queue: Queue, cache: Cache) -> GroupCommit[NewJob, Submitted | None]:
    """What `submit_with_others` needs; one per process."""

    @retries_conflicts
    async def write(rows: Sequence[NewJob]) -> list[Submitted | None]:
        async with db.statement("jobs.submit_group") as tx:
            return await _submit_rows(tx, queue, cache, rows)

    return GroupCommit(write, weight=lambda _: 1, owner=lambda row: row.user_id)


def _new_row(queue: Queue, kinds: Kinds, backlogs: QueueBacklogs, user_id: UserId, submission: Submission) -> NewJob:
    kind = kinds.get(submission.kind)
    if kind is None or not kind.public:
        raise UnknownKind(errors=[FieldError("#/kind", "There is no such kind.", "unknown_kind")])
    stored = parse_args(kind, submission.args)
    allowance = backlogs.allow(kind.queue)
    return queue.new_job(
        kind.name,
        stored,
        user_id=user_id,
        queue=kind.queue,
        run_at=submission.run_at,
        unique_key=submission.unique_key,
        priority=kind.priority,
        max_attempts=kind.max_attempts,
        timeout_s=kind.timeout,
        allowance=allowance,
    )


async def submit_row(tx: Tx, queue: Queue, cache: Cache, backlogs: QueueBacklogs, row: NewJob) -> Submitted:
    """Adds a row, and tells what became of it. Raises BacklogFull: its user has too much in its queue."""
    (submitted,) = await _submit_rows(tx, queue, cache, [row])
    return _accepted(submitted, backlogs, row)


def _accepted(submitted: Submitted | None, backlogs: QueueBacklogs, row: NewJob) -> Submitted:
    if submitted is None:
        raise backlogs.refusal(row.queue)
    return submitted


async def _submit_rows(tx: Tx, queue: Queue, cache: Cache, rows: Sequence[NewJob]) -> list[Submitted | None]:
    # Before the statement, because it also counts when the statement's answer is lost.
    for row in rows:
        cache.forget(tx, f"jobs:{row.user_id}")
    inserted = await queue.offer_rows(tx, rows)
    return [_submitted(row, done) for row, done in zip(rows, inserted, strict=True)]


def _submitted(row: NewJob, done: Enqueued | None) -> Submitted | None:
    if done is None:
        return None
    if not isinstance(done, InsertedJob):
        raise TypeError("the queue is plugged to another table")
    job = Job(
        id=done.id,
        user_id=row.user_id,
        kind=row.kind,
        state=done.state,
        version=done.version,
        attempt=done.attempt,
        max_attempts=done.max_attempts,
        is_due=done.is_due,
        progress=done.progress,
        result=None,
        error=done.error,
        artifacts="[]",
        created_at=done.created_at,
        started_at=done.started_at,
        finished_at=None,
    )
    return Submitted(job, done.created)


async def get_job(conn: ReadConn, job_id: UUID, user_id: UserId) -> Job:
    """Raises JobNotFound, also for a job of another user."""
    job = await queries.get_job(conn, job_id, user_id)
    if job is None:
        raise JobNotFound
    return job


async def list_jobs(
    db: Database,
    cursors: Cursors,
    user_id: UserId,
    *,
    state: JobState | None,
    kind: str | None,
    limit: int,
    cursor: str | None,
) -> Page[Job]:
    """A page of a user's jobs, newest first; it may be short (`kernel.pagination`). Raises InvalidCursor."""
    scope = f"{user_id}|{state}|{kind}"
    before = cursors.decode("jobs", scope, cursor, tuple[UUID])[0] if cursor is not None else None
    wanted = STATE_FILTERS[state] if state is not None else None
    scan_end: UUID | None = None
    async with db.read("jobs.list") as conn:
        if kind is not None or (wanted is not None and wanted.is_narrower):
            scan_end = await queries.get_scan_end(conn, user_id, before=before, state=wanted, count=MAX_SCANNED)
        found = await queries.list_jobs(
            conn, user_id, before=before, kind=kind, state=wanted, limit=limit + 1, scan_end=scan_end
        )
    return cursors.paginate(
        "jobs", scope, found, lambda job: (job.id,), limit=limit, scan_end=(scan_end,) if scan_end else None
    )


@retries_conflicts
async def cancel_job(
    db: Database, queue: Queue, cache: Cache, job_id: UUID, user_id: UserId, *, check: Callable[[str], None]
) -> Job:
    """Ends a queued job at once; asks a running one to stop. `check` lets its kind pass; what it raises ends it all.

    Raises:
        JobNotFound: no such job of this user.
        JobFinished: it is over.
    """
    async with db.transaction("jobs.cancel") as tx:
        check((await get_job(tx, job_id, user_id)).kind)
        await cancel(tx, queue, cache, job_id, user_id)
        return await get_job(tx, job_id, user_id)


@retries_conflicts
async def retry_job(
    db: Database,
    queue: Queue,
    cache: Cache,
    backlogs: QueueBacklogs,
    *,
    clock: Clock,
    actor: Actor,
    job_id: UUID,
    check: Callable[[str], None],
) -> Job:
    """Starts a failed or cancelled job over, which is as much as to submit it again. `check` lets its kind pass; what
    it raises ends it all.

    Raises:
        JobNotFound, JobNotRetryable, UniqueKeyInUse, BacklogFull: nothing was changed.
        TokenRevoked, TooManyAttempts: of kinds that leave an entry in the audit trail.
    """
    async with db.transaction("jobs.retry") as tx:
        kind = (await get_job(tx, job_id, actor.user_id)).kind
        check(kind)
        action = AUDITED_KINDS.get(kind)
        if action is not None:
            await lock_maker(tx, clock, actor)
        await requeue(tx, queue, cache, job_id, actor.user_id, backlogs)
        if action is not None:
            await record_security_event(tx, clock, actor, action)
        return await get_job(tx, job_id, actor.user_id)


async def cancel(tx: Tx, queue: Queue, cache: Cache, job_id: UUID, user_id: UserId | None) -> None:
    """Cancels a job; `user_id` None is an administrator. Raises as `cancel_job` does."""
    changed = await queries.request_cancel(tx, job_id, user_id)
    if changed is None:
        raise JobFinished if await queries.exists(tx, job_id, user_id) else JobNotFound
    announce(tx, cache, changed)
    if changed.state == State.RUNNING:
        queue.stop_running(tx, job_id)


async def requeue(
    tx: Tx, queue: Queue, cache: Cache, job_id: UUID, user_id: UserId | None, backlogs: QueueBacklogs | None
) -> None:
    """Starts a failed or cancelled job over; for an administrator `user_id` and `backlogs` are None, and nothing is
    counted. Raises as `retry_job` does.
    """
    try:
        changed = await queries.requeue_job(tx, job_id, user_id, backlogs.user_backlog if backlogs else None)
    except ConstraintViolated as violation:
        if violation.constraint == UNIQUE_KEY_CONSTRAINT:
            raise UniqueKeyInUse from violation
        raise
    if changed is None:
        raise await _why_not_retried(tx, job_id, user_id, backlogs)
    announce(tx, cache, changed)
    queue.redispatch(tx, ref_of(changed))


async def _why_not_retried(
    tx: Tx, job_id: UUID, user_id: UserId | None, backlogs: QueueBacklogs | None
) -> JobNotFound | JobNotRetryable | BacklogFull:
    found = await queries.get_state(tx, job_id, user_id)
    if found is None:
        return JobNotFound()
    queue, state = found
    if backlogs is not None and state in (State.FAILED, State.CANCELLED):
        return backlogs.refusal(queue)
    return JobNotRetryable()


def announce(tx: Tx, cache: Cache, *changes: Transition) -> None:
    """After the commit: cached answers are forgotten, and requests that watch one of these jobs look again."""
    for change in changes:
        tx.emit(CHANGED_TOPIC, change.id)
        if change.user_id is not None:
            cache.forget(tx, f"jobs:{change.user_id}")


def ref_of(change: Transition) -> JobRef:
    return JobRef(change.id, change.queue, change.user_id, change.priority)
