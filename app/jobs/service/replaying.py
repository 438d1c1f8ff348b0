"""Sending to an endpoint again what it was sent before, by a job of its own, which goes on where it was killed.

Each batch is one transaction with the step of the job's position, which moves from older to newer deliveries and ends
before the job itself, so that a replay begins no delivery anew twice.
"""

from dataclasses import replace
from datetime import datetime
from uuid import UUID

from app.identity.api import Actor
from app.jobs.errors import EndpointDisabled, EndpointNotFound, ReplayInProgress
from app.jobs.queries import webhook_deliveries as queries
from app.jobs.queries.positions import get_position, set_position
from app.jobs.records import Job
from app.jobs.records.administration import Position, end_id_until, lowest_id_since
from app.jobs.records.webhooks import MAX_PENDING, DeliveryState
from app.jobs.service.endpoints import check_enabled, take_call
from app.jobs.service.publishing import QUEUE, enqueue_deliveries
from app.jobs.service.submitting import get_job
from app.kernel.database import Database, retries_conflicts
from app.kernel.queue import JobContext, PermanentJobError, Queue, SnoozeJob

KIND_REPLAY = "webhook.replay"
TIMEOUT = 600
_BATCH = 500
# Until some of the pending deliveries have ended, and there is room for more.
_FULL_SECONDS = 30.0


@retries_conflicts
async def submit_replay(
    db: Database,
    queue: Queue,
    actor: Actor,
    endpoint_id: UUID,
    *,
    since: datetime,
    until: datetime | None,
    state: DeliveryState | None,
) -> Job:
    """Puts in the job that sends deliveries to an endpoint again.

    Raises:
        EndpointNotFound, EndpointDisabled
        TooManyRequests: the endpoint was tested, enabled or replayed too often.
        ReplayInProgress: the one before has not ended.
    """
    args = {
        "endpoint_id": str(endpoint_id),
        "since": since.isoformat(),
        "until": None if until is None else until.isoformat(),
        "state": state,
    }
    async with db.transaction("jobs.submit_replay") as tx:
        await take_call(tx, actor.user_id, endpoint_id)
        await check_enabled(tx, actor.user_id, endpoint_id)
        row = queue.new_job(
            *(KIND_REPLAY, args),
            user_id=actor.user_id,
            queue=QUEUE,
            unique_key=str(endpoint_id),
            timeout_s=TIMEOUT,
        )
        (done,) = await queue.enqueue_rows(tx, [row])
        if not done.created:
            raise ReplayInProgress
        return await get_job(tx, done.id, actor.user_id)


async def replay_batch(
    ctx: JobContext, endpoint_id: UUID, *, since: datetime, until: datetime | None, state: DeliveryState | None
) -> bool:
    """Begins the next deliveries anew, and ends the job with the last; whether it did.

    Raises:
        PermanentJobError: the endpoint was disabled or deleted meanwhile.
        SnoozeJob: the user has as many pending deliveries as one may have.
    """
    user_id = ctx.owner
    end = ctx.job_id if until is None else min(ctx.job_id, end_id_until(until))
    async with ctx.transaction("jobs.replay") as tx:
        try:
            await check_enabled(tx, user_id, endpoint_id)
        except (EndpointNotFound, EndpointDisabled) as error:
            raise PermanentJobError(error.code, "The endpoint was disabled or deleted meanwhile.") from error
        position = await get_position(tx, ctx.job_id) or Position(None, 0, 0, 0)
        room = min(_BATCH, MAX_PENDING - await queries.count_pending(tx, user_id))
        if room <= 0:
            raise SnoozeJob(_FULL_SECONDS)
        rows = await queries.list_replayed_deliveries(
            *(tx, user_id, endpoint_id),
            after=position.last_id or lowest_id_since(since),
            end=end,
            state=state,
            since=since,
            until=until,
            limit=room,
        )
        reopened = await queries.reopen_deliveries(tx, user_id, [row_id for row_id, is_meant in rows if is_meant])
        await enqueue_deliveries(tx, ctx.queue, [(user_id, delivery_id, None) for delivery_id in sorted(reopened)])
        is_over = len(rows) < room
        position = replace(
            position,
            last_id=rows[-1][0] if rows else position.last_id,
            done=position.done + len(reopened),
            skipped=position.skipped + len(rows) - len(reopened),
        )
        await set_position(tx, ctx.job_id, position)
        await ctx.progress(position.done)
        if is_over:
            await ctx.complete(tx, {"done": position.done})
    return is_over
