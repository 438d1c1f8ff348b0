"""The kind `export.account`: a copy of everything that is known about a user."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson

from app.identity.api import export_identity, iterate_security_events
from app.jobs.handlers.export_events import EVENT_COLUMNS, event_rows
from app.jobs.queries.invoices import iterate_invoices
from app.jobs.queries.submitting import iterate_jobs
from app.jobs.queries.webhook_endpoints import list_endpoints
from app.jobs.records import api_state
from app.jobs.schemas.job_kinds import ExportAccountArgs
from app.jobs.service.exporting import Archive, Column, Values, write_json_array
from app.kernel.database import CopyConn
from app.kernel.ids import UserId
from app.kernel.queue import DataAccess, JobContext, job
from app.users.api import export_user

_SECURITY_EVENT_COLUMNS = (
    Column("id", "text"),
    Column("action", "text"),
    Column("actor_id", "text"),
    Column("session_id", "text"),
    Column("ip", "text"),
    Column("user_agent", "text"),
    Column("data", "json"),
    Column("created_at", "timestamp"),
)
_JOB_COLUMNS = (
    Column("id", "text"),
    Column("kind", "text"),
    Column("state", "text"),
    Column("result", "json"),
    Column("error", "json"),
    Column("artifacts", "json"),
    Column("created_at", "timestamp"),
    Column("started_at", "timestamp"),
    Column("finished_at", "timestamp"),
)
_INVOICE_COLUMNS = (
    Column("id", "text"),
    Column("number", "text"),
    Column("order_id", "text"),
    Column("customer", "json"),
    Column("currency", "text"),
    Column("lines", "json"),
    Column("tax_rate_percent", "text"),
    Column("notes", "text"),
    Column("subtotal_minor", "text"),
    Column("tax_minor", "text"),
    Column("total_minor", "text"),
    Column("status", "text"),
    Column("created_at", "timestamp"),
)


@job(
    "export.account",
    args=ExportAccountArgs,
    queue="bulk",
    public=True,
    # Sessions, API keys and the audit trail are in it, which no other route shows to an API key.
    access=DataAccess(frozenset({"profile:read", "events:read", "jobs:read", "webhooks:manage"}), needs_session=True),
    max_attempts=5,
    timeout=900,
)
async def export_account(ctx: JobContext, _: ExportAccountArgs) -> Mapping[str, Any]:
    """Answers with the number of events; the artifact is `account.zip`, JSON files from one snapshot."""
    user_id = ctx.owner
    async with (
        ctx.db.snapshot("jobs.export_account") as conn,
        ctx.artifact("account.zip", "application/zip") as file,
    ):
        archive = Archive(file.write, ctx.clock.now())
        person = await export_user(conn, user_id)
        if person is not None:
            await archive.add("profile.json", _text_of(person.user.view()))
            await archive.add("preferences.json", _text_of(person.preferences.view()))
        for name, content in (await export_identity(conn, ctx.clock, user_id)).items():
            await archive.add(f"{name}.json", _text_of(content))
        await archive.add("webhook_endpoints.json", _text_of(await _endpoints(conn, user_id)))

        async def advance(done: int) -> None:
            await ctx.progress(done)

        for name, columns, values in (
            ("security_events", _SECURITY_EVENT_COLUMNS, _security_events(conn, user_id)),
            ("jobs", _JOB_COLUMNS, _jobs(conn, user_id)),
            ("invoices", _INVOICE_COLUMNS, _invoices(conn, user_id)),
        ):
            async with archive.member(f"{name}.json") as write:
                await write_json_array(columns, values, write, advance)
        async with archive.member("events.json") as write:
            rows = await write_json_array(EVENT_COLUMNS, event_rows(conn, user_id), write, advance)
        await ctx.progress(rows, rows)
        await archive.close()
    return {"events": rows}


async def _security_events(conn: CopyConn, user_id: UserId) -> AsyncIterator[Values]:
    async for event in iterate_security_events(conn, user_id):
        yield (
            str(event.id),
            event.action,
            str(event.actor_id) if event.actor_id else None,
            str(event.session_id) if event.session_id else None,
            event.ip,
            event.user_agent,
            event.data,
            event.created_at,
        )


async def _jobs(conn: CopyConn, user_id: UserId) -> AsyncIterator[Values]:
    async for item in iterate_jobs(conn, user_id):
        yield (
            str(item.id),
            item.kind,
            api_state(item.state, item.attempt, is_due=item.is_due),
            item.result,
            item.error,
            item.artifacts,
            item.created_at,
            item.started_at,
            item.finished_at,
        )


async def _invoices(conn: CopyConn, user_id: UserId) -> AsyncIterator[Values]:
    async for item in iterate_invoices(conn, user_id):
        yield (
            str(item.id),
            item.number,
            item.order_id,
            item.customer,
            item.currency,
            item.lines,
            item.tax_rate_percent,
            item.notes,
            item.subtotal_minor,
            item.tax_minor,
            item.total_minor,
            item.status,
            item.created_at,
        )


async def _endpoints(conn: CopyConn, user_id: UserId) -> list[dict[str, Any]]:
    return [
        {
            "id": item.id,
            "url": item.url,
            "event_types": item.event_types,
            "description": item.description,
            "created_at": item.created_at,
        }
        for item in await list_endpoints(conn, user_id)
    ]


def _text_of(content: Any) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_UTC_Z | orjson.OPT_INDENT_2, default=str)
