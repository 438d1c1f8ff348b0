"""The kind `users.expire_events`: deletes the events whose time is over, by the clock."""

from datetime import datetime

from app.kernel.queue import JobArgs, JobContext, job
from app.users.api import UsersSettings, expire_events

KIND_EXPIRE_EVENTS = "users.expire_events"


class ExpireEventsArgs(JobArgs):
    """The time this run stands for."""

    scheduled_at: datetime | None = None


@job(KIND_EXPIRE_EVENTS, args=ExpireEventsArgs, queue="bulk", timeout=10_800)
async def expire_old_events(ctx: JobContext, _: ExpireEventsArgs) -> dict[str, int]:
    """Answers how many were deleted. A crash in between loses nothing: the next run looks at all users again."""
    return {"events": await expire_events(ctx.db, ctx.service(UsersSettings).retention_rules)}
