"""The kind `export.account`: a copy of everything that is known about a user."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID

import orjson

from app.identity.api import export_identity
from app.jobs.handlers.export_events import EVENT_COLUMNS, event_rows
from app.jobs.queries.invoices import list_invoices
from app.jobs.queries.submitting import list_jobs
from app.jobs.queries.webhooks import list_endpoints
from app.jobs.records import api_state
from app.jobs.schemas.job_kinds import ExportAccountArgs
from app.jobs.service.exporting import Archive, write_ndjson
from app.kernel.database import CopyConn
from app.kernel.ids import UserId
from app.kernel.queue import JobContext, job
from app.users.api import export_user

_PAGE = 1_000


@job("export.account", args=ExportAccountArgs, lane="bulk", public=True, max_attempts=5, timeout=900)
async def export_account(ctx: JobContext, _: ExportAccountArgs) -> Mapping[str, Any]:
    """Answers with the number of events; the artifact is `account.zip`, JSON files from one snapshot."""
    user_id = ctx.user_id
    if user_id is None:
        raise ValueError("an export belongs to a user")
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
        await archive.add("jobs.json", _text_of([item async for item in _jobs(conn, user_id)]))
        await archive.add("invoices.json", _text_of([item async for item in _invoices(conn, user_id)]))
        await archive.add("webhook_endpoints.json", _text_of(await _endpoints(conn, user_id)))
        async with archive.member("events.json") as write:
            rows = await _write_events(conn, ctx, user_id, write)
        await ctx.progress(rows, rows)
        await archive.close()
    return {"events": rows}


async def _write_events(
    conn: CopyConn, ctx: JobContext, user_id: UserId, write: Callable[[bytes], Awaitable[None]]
) -> int:
    """One array, written as it comes."""
    separator = b"["

    async def write_items(lines: bytes) -> None:
        nonlocal separator
        # JSON text from Postgres has no line breaks of its own.
        await write(separator + b"\n" + lines.rstrip(b"\n").replace(b"\n", b",\n"))
        separator = b","

    async def advance(done: int) -> None:
        await ctx.progress(done)

    rows = await write_ndjson(EVENT_COLUMNS, event_rows(conn, user_id), write_items, advance)
    await write(b"\n]\n" if rows else b"[]\n")
    return rows


async def _jobs(conn: CopyConn, user_id: UserId) -> AsyncIterator[dict[str, Any]]:
    before: UUID | None = None
    while found := await list_jobs(conn, user_id, before=before, kind=None, state=None, limit=_PAGE):
        for item in found:
            yield {
                "id": item.id,
                "kind": item.kind,
                "state": api_state(item.state, item.attempt, is_due=item.is_due),
                "result": _json(item.result),
                "error": _json(item.error),
                "artifacts": _json(item.artifacts),
                "created_at": item.created_at,
                "started_at": item.started_at,
                "finished_at": item.finished_at,
            }
        before = found[-1].id


async def _invoices(conn: CopyConn, user_id: UserId) -> AsyncIterator[dict[str, Any]]:
    before: UUID | None = None
    while found := await list_invoices(conn, user_id, before=before, limit=_PAGE):
        for item in found:
            yield {
                "id": item.id,
                "number": item.number,
                "order_id": item.order_id,
                "customer": _json(item.customer),
                "currency": item.currency,
                "lines": _json(item.lines),
                "tax_rate_percent": item.tax_rate_percent,
                "notes": item.notes,
                "subtotal_minor": item.subtotal_minor,
                "tax_minor": item.tax_minor,
                "total_minor": item.total_minor,
                "status": item.status,
                "created_at": item.created_at,
            }
        before = found[-1].id


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


def _json(text: str | None) -> orjson.Fragment | None:
    return None if text is None else orjson.Fragment(text)


def _text_of(content: Any) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_UTC_Z | orjson.OPT_INDENT_2, default=str)
