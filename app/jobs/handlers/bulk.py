"""The kind `jobs.bulk`: retries, cancels or deletes all jobs that fit a filter, a batch at a time."""

from uuid import UUID

from app.jobs.records import JobState
from app.jobs.records.administration import BulkAction, JobFilter
from app.jobs.service.bulk import KIND_BULK, QUEUE, TIMEOUT, change_batch
from app.jobs.service.storage import ArtifactStore
from app.kernel.ids import UserId
from app.kernel.queue import DataAccess, JobArgs, JobContext, Moment, job


class BulkArgs(JobArgs):
    """What is to be done, and the conditions of the filter; None does not matter."""

    action: BulkAction
    state: JobState | None = None
    kind: str | None = None
    queue: str | None = None
    user_id: UUID | None = None
    error: str | None = None
    since: Moment | None = None
    until: Moment | None = None
    # Of the administrator's account; jobs of before carried none.
    version: int = 0


@job(
    KIND_BULK,
    args=BulkArgs,
    queue=QUEUE,
    access=DataAccess(frozenset({"admin"})),
    timeout=TIMEOUT,
)
async def bulk(ctx: JobContext, args: BulkArgs) -> None:
    """Ends with the counts of the jobs that were changed, and of those that something else had changed before."""
    wanted = JobFilter(
        state=args.state,
        kind=args.kind,
        queue=args.queue,
        user_id=None if args.user_id is None else UserId(args.user_id),
        error=args.error,
        since=args.since,
        until=args.until,
    )
    store = ctx.service(ArtifactStore)
    while not await change_batch(ctx, store, args.action, wanted, version=args.version):
        pass
