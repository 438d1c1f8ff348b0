"""The kind `users.expire_events`: deletes the events whose time is over, by the clock."""

from dataclasses import replace
from datetime import datetime

from app.jobs.queries.positions import get_position, set_position
from app.jobs.records.administration import Position
from app.kernel.queue import JobArgs, JobContext, job
from app.users.api import RetentionPosition, UsersSettings, expire_events

KIND_EXPIRE_EVENTS = "users.expire_events"


class ExpireEventsArgs(JobArgs):
    """The time this run stands for."""

    scheduled_at: datetime | None = None


@job(KIND_EXPIRE_EVENTS, args=ExpireEventsArgs, queue="bulk", timeout=10_800)
async def expire_old_events(ctx: JobContext, _: ExpireEventsArgs) -> dict[str, int]:
    """Answers how many were deleted. After a crash or a failure it goes on behind the last user it was done with."""
    rules = ctx.service(UsersSettings).retention_rules
    async with ctx.db.read("jobs.position") as conn:
        kept = await get_position(conn, ctx.job_id) or Position(None, 0, 0, 0)
    position: RetentionPosition | None = RetentionPosition.behind(kept.last_id)
    while position is not None:
        deleted, position = await expire_events(ctx.db, rules, position)
        last_id = kept.last_id if position is None else position.last_user_done
        kept = replace(kept, last_id=last_id, done=kept.done + deleted)
        async with ctx.transaction("jobs.expire_events") as tx:
            await set_position(tx, ctx.job_id, kept)
    return {"events": kept.done}
