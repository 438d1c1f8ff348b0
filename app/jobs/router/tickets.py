"""`/v1/jobs/{job_id}/events/ticket`, and the streams that tickets open."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.jobs.errors import TooManyStreams
from app.jobs.router.access import JobReader, Runtime
from app.jobs.router.jobs import stream_of
from app.jobs.schemas.jobs import StreamTicket
from app.jobs.service import tickets, watching
from app.kernel.auth import Permission, Public, authenticate_credential
from app.kernel.http import Id, Router, json_response, problem_responses
from app.kernel.ids import UserId
from app.kernel.request.state import RequestStateDep
from app.kernel.resources import ResourcesDep

router = Router(prefix="/v1/jobs", tags=["jobs"])

_READER = Permission(scopes=frozenset({"jobs:read"}))
# A credential of 4 KiB takes less, sealed and in base64; a target takes more (APP_CONNECTIONS_MAX_TARGET_BYTES).
_MAX_TICKET = 6 * 1024
_TicketText = Annotated[
    str, Query(min_length=1, max_length=_MAX_TICKET, description="The ticket, as it came in `url`.")
]


@router.post("/{job_id}/events/ticket", response_model=StreamTicket)
async def make_stream_ticket(
    state: RequestStateDep, principal: JobReader, resources: ResourcesDep, job_id: Id
) -> Response:
    """Get the address of a job's stream for an `EventSource`. It opens one stream, within a minute."""
    job = await watching.read_job(resources.db, job_id, principal.user_id)
    # A caller was found by it.
    ticket = tickets.make_ticket(resources.keys, resources.clock, job.id, state.credential or b"")
    url = f"/v1/jobs/{job.id}/events/stream?ticket={ticket}"
    return json_response({"url": url}, headers={"Cache-Control": "no-store"})


@dataclass(frozen=True, slots=True)
class _Admitted:
    """The caller behind a ticket, and what is to be watched."""

    job_id: UUID
    user_id: UserId
    credential: bytes


async def _watchable_by_ticket(
    request: Request,
    resources: ResourcesDep,
    runtime: Runtime,
    job_id: Id,
    ticket: _TicketText,
) -> AsyncIterator[_Admitted]:
    """Answers 401, 403, 404 or 429 before a stream begins; counts the stream until it has ended."""
    credential = await tickets.redeem_ticket(resources.db, resources.keys, resources.clock, job_id, ticket)
    principal = await authenticate_credential(request, credential)
    _READER.check_principal(principal)
    job = await watching.read_job(resources.db, job_id, principal.user_id)
    if runtime.watch.is_full(principal.user_id):
        raise TooManyStreams
    with runtime.watch.streaming(principal.user_id):
        yield _Admitted(job.id, principal.user_id, credential)


@router.get(
    "/{job_id}/events/stream",
    dependencies=[Public],
    response_class=EventSourceResponse,
    responses=problem_responses(401),
)
async def watch_job_by_ticket(
    request: Request,
    resources: ResourcesDep,
    runtime: Runtime,
    admitted: Annotated[_Admitted, Depends(_watchable_by_ticket)],
) -> AsyncIterator[ServerSentEvent]:
    """Stream a job as `/events` does, to the holder of a ticket. After an end get another ticket."""

    async def authenticate() -> None:
        await authenticate_credential(request, admitted.credential)

    following = watching.follow_job(
        *(resources.db, runtime.watch, admitted.job_id, admitted.user_id), before_each=authenticate
    )
    async for event in stream_of(request, following, None):
        yield event
