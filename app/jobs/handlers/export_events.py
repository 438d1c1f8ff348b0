"""The kind `export.events`: a user's events as a file, from one snapshot, in constant memory."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import AwareDatetime

from app.kernel.queue import JobArgs, JobContext, job
from app.users.api import count_events, stream_events

_PROGRESS_BYTES = 1024 * 1024


class ExportEventsArgs(JobArgs):
    """`since` is included, `until` is not."""

    format: Literal["csv"]
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None


@job("export.events", args=ExportEventsArgs, lane="bulk", public=True, max_attempts=5, timeout=900)
async def export_events(ctx: JobContext, args: ExportEventsArgs) -> Mapping[str, Any]:
    """Answers with the number of rows; the file is the artifact `events.<format>`."""
    if ctx.user_id is None:
        raise ValueError("an export belongs to a user")
    async with ctx.db.snapshot("jobs.export_events") as conn:
        total = await count_events(conn, ctx.user_id, args.since, args.until)
        async with ctx.artifact("events.csv", "text/csv; charset=utf-8") as file:
            lines = 0

            async def write(data: bytes) -> None:
                nonlocal lines
                await file.write(data)
                lines += data.count(b"\n")
                await ctx.progress(min(lines, total), total)

            rows = await stream_events(conn, ctx.user_id, args.since, args.until, write)
    return {"rows": rows}
