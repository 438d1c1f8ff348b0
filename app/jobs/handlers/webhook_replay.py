"""The kind `webhook.replay`: sends to an endpoint again what it was sent before, a batch at a time."""

from uuid import UUID

from app.jobs.records.webhooks import DeliveryState
from app.jobs.service.publishing import QUEUE
from app.jobs.service.replaying import KIND_REPLAY, TIMEOUT, replay_batch
from app.kernel.queue import DataAccess, JobArgs, JobContext, Moment, job


class ReplayArgs(JobArgs):
    """Which deliveries of the job's owner: to this endpoint, `since <= created_at < until`, in this state."""

    endpoint_id: UUID
    since: Moment
    until: Moment | None = None
    state: DeliveryState | None = None


@job(
    KIND_REPLAY,
    args=ReplayArgs,
    queue=QUEUE,
    access=DataAccess(frozenset({"webhooks:manage"})),
    timeout=TIMEOUT,
)
async def webhook_replay(ctx: JobContext, args: ReplayArgs) -> None:
    """Ends with the count of the deliveries that were begun anew."""
    while not await replay_batch(ctx, args.endpoint_id, since=args.since, until=args.until, state=args.state):
        pass
