"""The kind `export.account`: a copy of everything that is known about a user."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson

from app.identity.api import export_identity
from app.jobs.service.exporting import Column, write_ndjson
from app.kernel.database import CopyConn
from app.kernel.ids import UserId
from app.kernel.queue import JobArgs, JobContext, job
from app.users.api import export_user, iterate_events

_COLUMNS = (
    Column("id", "text"),
    Column("kind", "text"),
    Column("occurred_at", "timestamp"),
    Column("properties", "json"),
    Column("created_at", "timestamp"),
)


class ExportAccountArgs(JobArgs):
    """There is nothing to choose."""


@job("export.account", args=ExportAccountArgs, lane="bulk", public=True, max_attempts=5, timeout=900)
async def export_account(ctx: JobContext, _: ExportAccountArgs) -> Mapping[str, Any]:
    """Answers with the number of events; the artifacts are `account.json` and `events.ndjson`, from one snapshot."""
    user_id = ctx.user_id
    if user_id is None:
        raise ValueError("an export belongs to a user")
    async with ctx.db.snapshot("jobs.export_account") as conn:
        person = await export_user(conn, user_id)
        content = {"identity": await export_identity(conn, ctx.clock, user_id)}
        if person is not None:
            content |= {"profile": person.user.view(), "preferences": person.preferences.view()}
        async with ctx.artifact("account.json", "application/json") as file:
            await file.write(orjson.dumps(content, option=orjson.OPT_UTC_Z | orjson.OPT_INDENT_2, default=str))

        async def advance(done: int) -> None:
            await ctx.progress(done)

        async with ctx.artifact("events.ndjson", "application/x-ndjson") as file:
            rows = await write_ndjson(_COLUMNS, _events(conn, user_id), file.write, advance)
    return {"events": rows}


async def _events(conn: CopyConn, user_id: UserId) -> AsyncIterator[Sequence[Any]]:
    async for event in iterate_events(conn, user_id, None, None):
        occurred_at, created_at = map(datetime.fromisoformat, (event["occurred_at"], event["created_at"]))
        yield (str(event["id"]), event["kind"], occurred_at, event["properties"], created_at)
