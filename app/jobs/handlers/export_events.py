"""The kind `export.events`: a user's events as a file, from one snapshot, in constant memory."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from app.jobs.schemas.job_kinds import ExportEventsArgs
from app.jobs.service.exporting import Column, write_ndjson, write_parquet, write_xlsx
from app.kernel.database import CopyConn
from app.kernel.ids import UserId
from app.kernel.queue import DataAccess, JobContext, job
from app.users.api import count_events, events_tag, iterate_events, stream_events

EVENT_COLUMNS = (
    Column("id", "text"),
    Column("kind", "text"),
    Column("occurred_at", "timestamp"),
    Column("properties", "json"),
    Column("created_at", "timestamp"),
)
_CONTENT_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "ndjson": "application/x-ndjson",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "parquet": "application/vnd.apache.parquet",
}
_LINES_A_STEP = 5_000
_WRITERS = {"ndjson": write_ndjson, "parquet": write_parquet, "xlsx": write_xlsx}


@job(
    "export.events",
    args=ExportEventsArgs,
    queue="bulk",
    public=True,
    access=DataAccess(frozenset({"events:read"})),
    max_attempts=5,
    timeout=900,
)
async def export_events(ctx: JobContext, args: ExportEventsArgs) -> Mapping[str, Any]:
    """Answers with the number of rows; the file is the artifact `events.<format>`.

    A kind begins with a letter and properties with a brace, so no cell of the CSV can be taken for a formula.
    """
    user_id = ctx.owner
    # A replica may end a long read, which is an outage and no attempt; the next run does not depend on one.
    sees = [] if ctx.is_continued else [events_tag(user_id)]
    async with ctx.db.snapshot("jobs.export_events", sees=sees) as conn:
        total = await count_events(conn, user_id, args.since, args.until)

        async def advance(done: int) -> None:
            await ctx.progress(min(done, total), total)

        async with ctx.artifact(f"events.{args.format}", _CONTENT_TYPES[args.format]) as file:
            if args.format == "csv":
                lines = told = 0

                async def write(data: bytes) -> None:
                    nonlocal lines, told
                    await file.write(data)
                    lines += data.count(b"\n")
                    if lines - told >= _LINES_A_STEP:
                        told = lines
                        await advance(lines)

                rows = await stream_events(conn, user_id, args.since, args.until, write)
            else:
                values = event_rows(conn, user_id, args.since, args.until)
                rows = await _WRITERS[args.format](EVENT_COLUMNS, values, file.write, advance)
            await advance(rows)
    return {"rows": rows}


async def event_rows(
    conn: CopyConn, user_id: UserId, since: datetime | None = None, until: datetime | None = None
) -> AsyncIterator[Sequence[Any]]:
    """A user's events as values of `EVENT_COLUMNS`, the oldest first."""
    async for event in iterate_events(conn, user_id, since, until):
        occurred_at, created_at = map(datetime.fromisoformat, (event["occurred_at"], event["created_at"]))
        yield (str(event["id"]), event["kind"], occurred_at, event["properties"], created_at)
