"""`/v1/jobs`."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Header, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.identity.api import lock_maker, record_security_event
from app.jobs.errors import TooManyStreams
from app.jobs.records import Job, State, api_state
from app.jobs.router.access import (
    DeviceDep,
    FileReader,
    JobReader,
    JobStarter,
    JobWriter,
    Runtime,
    actor_of,
    check_kind,
    fragment,
)
from app.jobs.router.files import file_response, file_responses
from app.jobs.schemas.jobs import (
    JobPage,
    JobQuery,
    JobResponse,
    SubmitJob,
)
from app.jobs.service import artifacts, submitting, watching
from app.kernel.auth import authenticate_again, principal_of
from app.kernel.background import until
from app.kernel.database import Tx
from app.kernel.fairness.disconnects import extend_deadline
from app.kernel.http import (
    Id,
    Router,
    asked_to_wait,
    dump_json,
    etag_of,
    json_response,
    located,
    path_name,
    problem_responses,
    reads_headers,
)
from app.kernel.http.event_streams import RECONNECT_MILLISECONDS, draining_of, while_welcome
from app.kernel.http.idempotency import idempotent
from app.kernel.request.state import RequestStateDep
from app.kernel.resources import ResourcesDep

router = Router(prefix="/v1/jobs", tags=["jobs"])


@router.post(
    "",
    status_code=202,
    response_model=JobResponse,
    responses=problem_responses(409)
    | located(202)
    | {
        200: {
            "model": JobResponse,
            "description": "The unfinished job with the same unique key",
            **located(200)[200],
        }
    },
    openapi_extra=reads_headers("IdempotencyKey"),
)
async def submit_job(
    request: Request,
    principal: JobStarter,
    resources: ResourcesDep,
    runtime: Runtime,
    device: DeviceDep,
    body: SubmitJob,
) -> Response:
    """Create a job. The token needs the scopes of the data that the job reads: `events:read` for exports and reports
    of events; a copy of the account needs a session with its full scope.
    """
    check_kind(principal, runtime.kinds, body.kind)
    submitting.check_run_at(body.run_at, resources.clock.now())
    submission = submitting.Submission(body.kind, body.args, body.run_at, body.unique_key)
    action = submitting.AUDITED_KINDS.get(body.kind)
    if body.unique_key is None and action is None and "idempotency-key" not in request.headers:
        submitted = await submitting.submit_with_others(
            request.app.state.submissions,
            resources.queue,
            runtime.kinds,
            runtime.backlogs,
            user_id=principal.user_id,
            submission=submission,
        )
        return _accepted(submitted)

    async def submit(tx: Tx) -> Response:
        if action is not None:
            await lock_maker(tx, resources.clock, actor_of(principal, device))
        submitted = await submitting.submit(
            tx,
            resources.queue,
            resources.cache,
            runtime.kinds,
            runtime.backlogs,
            user_id=principal.user_id,
            submission=submission,
        )
        if action is not None and submitted.created:
            await record_security_event(tx, resources.clock, actor_of(principal, device), action)
        return _accepted(submitted)

    return await idempotent(
        request, resources, principal.user_id, operation="jobs.submit", effect=submit, single_statement=action is None
    )


def _accepted(submitted: submitting.Submitted) -> Response:
    job = submitted.job
    return json_response(
        job_view(job),
        status=202 if submitted.created else 200,
        headers={"Location": f"/v1/jobs/{job.id}"},
    )


@router.get("", response_model=JobPage)
async def list_jobs(principal: JobReader, resources: ResourcesDep, query: Annotated[JobQuery, Query()]) -> Response:
    """List your jobs, newest first."""
    page = await submitting.list_jobs(
        resources.db,
        resources.cursors,
        principal.user_id,
        state=query.state,
        kind=query.kind,
        limit=query.limit,
        cursor=query.cursor,
    )
    return json_response({"items": [job_view(job) for job in page.items], "next_cursor": page.next_cursor})


@router.get("/{job_id}", response_model=JobResponse, openapi_extra=reads_headers("Prefer"))
async def get_job(
    request: Request,
    state: RequestStateDep,
    principal: JobReader,
    resources: ResourcesDep,
    runtime: Runtime,
    job_id: Id,
) -> Response:
    """Get one of your jobs."""
    seconds = asked_to_wait(state)
    # A preference may be passed over (RFC 7240, section 2): where there is no room, the answer comes at once.
    if seconds and runtime.watch.may_wait(principal.user_id):
        # Waiting is no work, and must not keep others from it.
        state.release_slot()
        extend_deadline(seconds)
        job = await watching.wait_for_job(
            resources.db, runtime.watch, job_id, principal.user_id, seconds=seconds, stop=draining_of(request)
        )
        await authenticate_again(request)
    else:
        seconds = 0
        job = await watching.read_job(resources.db, job_id, principal.user_id)
    view = job_view(job)
    headers = {"Preference-Applied": f"wait={seconds}"} if seconds else {}
    return json_response(
        view, headers=headers, etag=etag_of(resources.incarnation.mark, job.id, job.version, view["state"])
    )


_LastEventId = Annotated[str | None, Header(include_in_schema=False)]


async def _watchable(
    principal: JobReader, resources: ResourcesDep, runtime: Runtime, job_id: Id, last_event_id: _LastEventId = None
) -> AsyncIterator[UUID]:
    """Answers 204, 404 or 429 before a stream begins, because afterwards it is too late for a status; counts the stream
    until it has ended.
    """
    job = await watching.read_job(resources.db, job_id, principal.user_id)
    if last_event_id == str(job.version) and State(job.state).is_final:
        # An EventSource comes again after each end but this one (HTML, section 9.2.3).
        raise HTTPException(status_code=204)
    if runtime.watch.is_full(principal.user_id):
        raise TooManyStreams
    with runtime.watch.streaming(principal.user_id):
        yield job.id


@router.get(
    "/{job_id}/events",
    response_class=EventSourceResponse,
    responses={204: {"description": "The job is finished, and `Last-Event-ID` was that of its last event"}},
    openapi_extra=reads_headers("LastEventId"),
)
async def watch_job(
    request: Request,
    state: RequestStateDep,
    resources: ResourcesDep,
    runtime: Runtime,
    job_id: Annotated[UUID, Depends(_watchable)],
    last_event_id: _LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    """Stream a job as server-sent events: `state`, `progress`, `artifact`, and finally `done` or `shutdown`.

    After `shutdown`, reconnect: the new stream continues where this one ended. It also ends when your token does.

    Every event carries the complete value, and a stream starts with a snapshot, so nothing is lost between two
    connections. Reconnecting with the id of the `done` event gets 204.
    """
    principal = principal_of(state)
    following = watching.follow_job(
        resources.db, runtime.watch, job_id, principal.user_id, before_each=partial(authenticate_again, request)
    )
    async for event in stream_of(request, following, last_event_id):
        yield event


async def stream_of(
    request: Request, following: AsyncIterator[Job], last_event_id: str | None
) -> AsyncIterator[ServerSentEvent]:
    """What the stream of a job tells, until it ends, the caller's credential does or the server does."""
    seen: Job | None = None
    draining = draining_of(request)
    async for job in while_welcome(until(draining, following)):
        # A client that has this version already waits for the next one.
        is_known = seen is None and last_event_id == str(job.version)
        for event in () if is_known else _events(seen, job):
            yield event
        seen = job
    if draining is not None and draining.is_set() and (seen is None or not State(seen.state).is_final):
        yield ServerSentEvent(event="shutdown", data={}, retry=RECONNECT_MILLISECONDS)


@router.post(
    "/{job_id}/cancel",
    response_model=JobResponse,
    responses=problem_responses(409)
    | {202: {"model": JobResponse, "description": "The job is running and was asked to stop"}},
)
async def cancel_job(principal: JobWriter, resources: ResourcesDep, runtime: Runtime, job_id: Id) -> Response:
    """Cancel an unfinished job. The token needs the same scopes as for creating it."""
    job = await submitting.cancel_job(
        resources.db,
        resources.queue,
        resources.cache,
        job_id,
        principal.user_id,
        check=partial(check_kind, principal, runtime.kinds),
    )
    status = 202 if job.state == State.RUNNING else 200
    return json_response(job_view(job), status=status)


@router.post(
    "/{job_id}/retry", status_code=202, response_model=JobResponse, responses=problem_responses(409) | located(202)
)
async def retry_job(
    principal: JobStarter, resources: ResourcesDep, runtime: Runtime, device: DeviceDep, job_id: Id
) -> Response:
    """Retry a failed or cancelled job from the start. The token needs the same scopes as for creating it."""
    job = await submitting.retry_job(
        resources.db,
        resources.queue,
        resources.cache,
        runtime.backlogs,
        clock=resources.clock,
        actor=actor_of(principal, device),
        job_id=job_id,
        check=partial(check_kind, principal, runtime.kinds),
    )
    return json_response(job_view(job), status=202, headers={"Location": f"/v1/jobs/{job.id}"})


@router.get(
    "/{job_id}/artifacts/{name}",
    response_class=StreamingResponse,
    # What `*/*` says already is named for generators that know no ranges of media types.
    responses=problem_responses(410, 416) | file_responses("application/octet-stream", "*/*"),
    openapi_extra=reads_headers("IfNoneMatch", "Range", "IfRange"),
)
async def download_artifact(
    state: RequestStateDep,
    principal: FileReader,
    resources: ResourcesDep,
    runtime: Runtime,
    job_id: Id,
    name: Annotated[str, path_name("Name of the artifact.")],
) -> Response:
    """Download a file of a job."""
    artifact = await artifacts.get_artifact(resources.db, job_id, principal.user_id, name)
    check_kind(principal, runtime.kinds, artifact.kind)
    return await file_response(state, runtime, principal.user_id, artifact, artifact.name)


def job_view(job: Job) -> dict[str, Any]:
    """The job as its owner sees it."""
    return {
        "id": job.id,
        "kind": job.kind,
        "state": api_state(job.state, job.attempt, is_due=job.is_due),
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "progress": fragment(job.progress),
        "result": fragment(job.result),
        "error": fragment(job.error),
        "artifacts": fragment(job.artifacts),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
    }


def _events(before: Job | None, job: Job) -> list[ServerSentEvent]:
    """What is new in `job`. Only the last event names the version: a client that missed one gets all of them again.
    The first event of a stream says how soon to come again.
    """
    view = dump_json(job_view(job)).decode()
    parts: list[tuple[str, str]] = []
    if before is None or (before.state, before.attempt) != (job.state, job.attempt):
        parts.append(("state", view))
    if job.progress is not None and (before is None or before.progress != job.progress):
        parts.append(("progress", job.progress))
    if job.artifacts != "[]" and (before is None or before.artifacts != job.artifacts):
        parts.append(("artifact", job.artifacts))
    if State(job.state).is_final:
        parts.append(("done", view))
    version = str(job.version)
    return [
        ServerSentEvent(
            event=name,
            raw_data=data,
            id=version if index == len(parts) else None,
            retry=RECONNECT_MILLISECONDS if before is None and index == 1 else None,
        )
        for index, (name, data) in enumerate(parts, start=1)
    ]
