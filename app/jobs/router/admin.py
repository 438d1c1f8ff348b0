"""`/v1/admin/queues`, `/v1/admin/jobs` and `/v1/admin/mail`."""

from typing import Annotated, Any

import orjson
from fastapi import Query, Request, Response

from app.identity.api import IDENTITY_KINDS, record_admin_read
from app.jobs.records import AdminJob, QueueDepth, State, api_state
from app.jobs.records.administration import JobDetail, JobFilter, ScheduleStatus, WorkerStatus
from app.jobs.router.access import Admin, AdminStarter, DeviceDep, Runtime, actor_of, fragment
from app.jobs.schemas.admin import (
    AdminJobAccepted,
    AdminJobDetail,
    AdminJobFilter,
    AdminJobPage,
    AdminJobQuery,
    AdminJobResponse,
    BulkJobsCount,
    BulkJobsRequest,
    QueueList,
    SchedulePage,
    SuppressedAddress,
    SuppressionLifted,
    WorkerPage,
)
from app.jobs.service import administration, bulk, mail_outbox, presence, scheduling
from app.jobs.service.submitting import Kinds
from app.kernel.database import Tx
from app.kernel.http import (
    Id,
    PageQueryDep,
    Router,
    json_response,
    located,
    path_name,
    problem_responses,
    reads_headers,
)
from app.kernel.http.idempotency import check_key, idempotent
from app.kernel.ids import UserId
from app.kernel.queue import REDACTED
from app.kernel.resources import ResourcesDep

router = Router(prefix="/v1/admin", tags=["admin"])

_SCHEDULE = path_name("Name of the schedule.")


@router.get("/queues", response_model=QueueList)
async def list_queues(_: Admin, resources: ResourcesDep, page: PageQueryDep) -> Response:
    """List the queues with their waiting and running jobs."""
    queues = sorted(await administration.list_queues(resources.db), key=lambda queue: queue.queue)
    found = resources.cursors.paginate_in_memory(
        "queues", "", queues, lambda queue: (queue.queue,), tuple[str], limit=page.limit, cursor=page.cursor
    )
    items = [_queue_view(queue) for queue in found.items]
    return json_response({"items": items, "next_cursor": found.next_cursor})


@router.post("/queues/{queue}/pause", status_code=204)
async def pause_queue(
    principal: Admin, resources: ResourcesDep, device: DeviceDep, queue: Annotated[str, path_name("Name of the queue.")]
) -> Response:
    """Pause a queue: start no more of its jobs."""
    admin = actor_of(principal, device)
    await administration.pause_queue(resources.db, resources.queue, resources.clock, admin, queue, paused=True)
    return Response(status_code=204)


@router.post("/queues/{queue}/resume", status_code=204)
async def resume_queue(
    principal: Admin, resources: ResourcesDep, device: DeviceDep, queue: Annotated[str, path_name("Name of the queue.")]
) -> Response:
    """Resume a paused queue."""
    admin = actor_of(principal, device)
    await administration.pause_queue(resources.db, resources.queue, resources.clock, admin, queue, paused=False)
    return Response(status_code=204)


@router.get("/schedules", response_model=SchedulePage)
async def list_schedules(_: Admin, resources: ResourcesDep, page: PageQueryDep) -> Response:
    """List the schedules with their next and newest runs."""
    schedules = await scheduling.list_schedules(resources.db)
    found = resources.cursors.paginate_in_memory(
        "schedules", "", schedules, lambda schedule: (schedule.name,), tuple[str], limit=page.limit, cursor=page.cursor
    )
    return json_response(
        {"items": [_schedule_view(schedule) for schedule in found.items], "next_cursor": found.next_cursor}
    )


@router.post("/schedules/{name}/pause", status_code=204)
async def pause_schedule(
    principal: Admin, resources: ResourcesDep, device: DeviceDep, name: Annotated[str, _SCHEDULE]
) -> Response:
    """Pause a schedule: run it on demand only."""
    admin = actor_of(principal, device)
    await scheduling.pause_schedule(resources.db, resources.clock, admin, name, paused=True)
    return Response(status_code=204)


@router.post("/schedules/{name}/resume", status_code=204)
async def resume_schedule(
    principal: Admin, resources: ResourcesDep, device: DeviceDep, name: Annotated[str, _SCHEDULE]
) -> Response:
    """Resume a paused schedule from its next time on."""
    admin = actor_of(principal, device)
    await scheduling.pause_schedule(resources.db, resources.clock, admin, name, paused=False)
    return Response(status_code=204)


@router.post("/schedules/{name}/run", status_code=202, response_model=AdminJobAccepted, responses=located(202))
async def run_schedule(
    principal: AdminStarter,
    resources: ResourcesDep,
    runtime: Runtime,
    device: DeviceDep,
    name: Annotated[str, _SCHEDULE],
) -> Response:
    """Run a schedule now, also a paused one. While a run on demand is unfinished, this answers with its job."""
    job = await scheduling.run_schedule_now(
        *(resources.db, resources.queue, resources.clock, IDENTITY_KINDS | runtime.kinds),
        *(actor_of(principal, device), name),
    )
    return json_response({"job": _admin_view(job)}, status=202, headers={"Location": f"/v1/admin/jobs/{job.id}"})


@router.get("/workers", response_model=WorkerPage)
async def list_workers(_: Admin, resources: ResourcesDep, page: PageQueryDep) -> Response:
    """List the worker processes."""
    found = resources.cursors.paginate_in_memory(
        *("workers", "", await presence.list_workers(resources.db), lambda worker: (worker.worker_id,), tuple[str]),
        limit=page.limit,
        cursor=page.cursor,
    )
    return json_response({"items": [_worker_view(worker) for worker in found.items], "next_cursor": found.next_cursor})


@router.get("/jobs", response_model=AdminJobPage)
async def list_all_jobs(
    principal: Admin, resources: ResourcesDep, device: DeviceDep, query: Annotated[AdminJobQuery, Query()]
) -> Response:
    """List the jobs of all users, newest first."""
    page = await administration.list_all_jobs(
        resources.db, resources.cursors, _filter_of(query), limit=query.limit, cursor=query.cursor
    )
    await record_admin_read(resources.db, resources.clock, actor_of(principal, device), "jobs")
    return json_response({"items": [_admin_view(job) for job in page.items], "next_cursor": page.next_cursor})


@router.get("/jobs/{job_id}", response_model=AdminJobDetail)
async def get_any_job(
    principal: Admin, resources: ResourcesDep, runtime: Runtime, device: DeviceDep, job_id: Id
) -> Response:
    """Get a job of any user, with its arguments, runs and files."""
    job = await administration.get_job_detail(resources.db, job_id)
    await record_admin_read(resources.db, resources.clock, actor_of(principal, device), "job", job.user_id)
    return json_response(_detail_view(job, IDENTITY_KINDS | runtime.kinds))


@router.post(
    "/jobs/{job_id}/cancel",
    response_model=AdminJobResponse,
    responses=problem_responses(409)
    | {202: {"model": AdminJobResponse, "description": "The job is running and was asked to stop"}},
)
async def cancel_any_job(principal: Admin, resources: ResourcesDep, device: DeviceDep, job_id: Id) -> Response:
    """Cancel an unfinished job of any user."""
    job = await administration.cancel_any_job(
        resources.db, resources.queue, resources.cache, resources.clock, actor_of(principal, device), job_id
    )
    return json_response(_admin_view(job), status=202 if job.state == State.RUNNING else 200)


@router.post(
    "/jobs/{job_id}/retry",
    status_code=202,
    response_model=AdminJobResponse,
    responses=problem_responses(409),
)
async def retry_any_job(principal: Admin, resources: ResourcesDep, device: DeviceDep, job_id: Id) -> Response:
    """Retry a failed or cancelled job of any user."""
    job = await administration.retry_any_job(
        resources.db, resources.queue, resources.cache, resources.clock, actor_of(principal, device), job_id
    )
    return json_response(_admin_view(job), status=202)


@router.post(
    "/jobs/bulk",
    status_code=202,
    response_model=AdminJobAccepted,
    responses=located(202)
    | {200: {"model": BulkJobsCount, "description": "How many jobs would be changed: the answer to `dry_run`"}},
    openapi_extra=reads_headers("IdempotencyKey"),
)
async def change_jobs(
    request: Request, principal: AdminStarter, resources: ResourcesDep, device: DeviceDep, body: BulkJobsRequest
) -> Response:
    """Retry, cancel or delete all jobs that fit a filter, or count them. A job does it, which is one of yours."""
    wanted = _filter_of(body.filter)
    actor = actor_of(principal, device)
    if body.dry_run:
        check_key(request)
        matched = await bulk.count_bulk(resources.db, body.action, wanted)
        await record_admin_read(resources.db, resources.clock, actor, "jobs")
        return json_response({"matched": matched})

    async def submit(tx: Tx) -> Response:
        job = await bulk.submit_bulk(tx, resources.queue, resources.clock, actor, body.action, wanted)
        return json_response({"job": _admin_view(job)}, status=202, headers={"Location": f"/v1/admin/jobs/{job.id}"})

    return await idempotent(request, resources, principal.user_id, operation="jobs.bulk", effect=submit)


@router.post("/mail/suppressions/lift", response_model=SuppressionLifted)
async def lift_mail_suppression(
    principal: Admin, resources: ResourcesDep, device: DeviceDep, body: SuppressedAddress
) -> Response:
    """Lift the suppression of an address whose server refused an e-mail."""
    admin = actor_of(principal, device)
    is_lifted = await mail_outbox.lift_suppression(resources.db, resources.keys, resources.clock, admin, body.email)
    return json_response({"lifted": is_lifted})


def _queue_view(queue: QueueDepth) -> dict[str, Any]:
    return {
        "queue": queue.queue,
        "paused": queue.paused,
        "waiting": queue.waiting,
        "running": queue.running,
        "finished_last_minute": queue.finished,
        "failed_last_minute": queue.failed,
        "oldest_seconds": queue.oldest_seconds,
    }


def _schedule_view(schedule: ScheduleStatus) -> dict[str, Any]:
    state = schedule.job_state
    last_run = {
        "at": schedule.last_run_at,
        "job_id": schedule.last_job_id,
        "state": None
        if state is None
        else api_state(state, schedule.job_attempt or 0, is_due=bool(schedule.job_is_due)),
        "finished_at": schedule.job_finished_at,
    }
    return {
        "name": schedule.name,
        "kind": schedule.kind,
        "cron": schedule.cron,
        "timezone": schedule.timezone,
        "paused": schedule.paused_at is not None,
        "next_run_at": schedule.next_run_at if schedule.paused_at is None else None,
        "last_run": last_run if schedule.last_run_at else None,
    }


def _worker_view(worker: WorkerStatus) -> dict[str, Any]:
    return {
        "id": worker.worker_id,
        "version": worker.version,
        "queues": worker.queues,
        "slots": worker.slots,
        "running": worker.running,
        "started_at": worker.started_at,
        "last_heartbeat_at": worker.heartbeat_at,
    }


def _admin_view(job: AdminJob | JobDetail) -> dict[str, Any]:
    return {
        "id": job.id,
        "user_id": job.user_id,
        "kind": job.kind,
        "queue": job.queue,
        "state": api_state(job.state, job.attempt, is_due=job.is_due),
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "rescues": job.rescues,
        "worker_id": job.worker_id,
        "error": fragment(job.error),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
    }


def _detail_view(job: JobDetail, kinds: Kinds) -> dict[str, Any]:
    kind = kinds.get(job.kind)
    args = orjson.loads(job.args)
    view = _admin_view(job)
    return view | {
        # A kind of a newer release may have secrets of which this one does not know.
        "args": dict.fromkeys(args, REDACTED) if kind is None else kind.args.redact(args),
        "progress": fragment(job.progress),
        "result": fragment(job.result),
        "attempts": fragment(job.attempts),
        "artifacts": fragment(job.artifacts),
        "trace_id": job.trace_parent.split("-")[1] if job.trace_parent else None,
        "run_at": job.run_at,
    }


def _filter_of(query: AdminJobQuery | AdminJobFilter) -> JobFilter:
    return JobFilter(
        state=query.state,
        kind=query.kind,
        queue=query.queue,
        user_id=UserId(query.user_id) if query.user_id else None,
        error=query.error,
        since=query.since,
        until=query.until,
    )
