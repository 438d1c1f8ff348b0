"""Deleting what the module has of a person whose account is purged: jobs, files, invoices, webhooks, mail."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import orjson

from app.jobs.queries import erasure as queries
from app.jobs.service.mail_outbox import MailOutbox
from app.jobs.service.storage import ArtifactStore
from app.kernel.database import Database, in_batches
from app.kernel.http.idempotency import delete_keys_of
from app.kernel.ids import UserId
from app.kernel.queue import JobContext, SnoozeJob
from app.kernel.validation.addresses import canonical_email

_BATCH = 1_000
_NOTICE_SECONDS = 2.0


class Eraser:
    """One per worker. Every step can be repeated, so a purge that was interrupted runs again from the start."""

    def __init__(self, store: ArtifactStore, outbox: MailOutbox) -> None:
        self._store = store
        self._outbox = outbox

    async def erase(self, ctx: JobContext, user_id: UserId, email: str) -> None:
        """Deletes everything of a user with this present address, but for the job that runs.

        Raises:
            SnoozeJob: the notice that the account was closed has not been sent yet.
        """
        addresses = {canonical_email(email)}
        jobs = await _find_mail_jobs(ctx.db, user_id, addresses)
        # Files first: without their rows they could not be found again before a day has passed.
        await self._delete_files(ctx.db, user_id)
        hashes = self._outbox.hashes_of(addresses)
        for delete in (
            queries.delete_user_jobs,
            queries.delete_user_deliveries,
            queries.delete_user_messages,
            queries.delete_user_invoices,
            delete_keys_of,
        ):
            await in_batches(ctx.db, "jobs.erase", lambda tx, limit, delete=delete: delete(tx, user_id, limit))  # type: ignore[misc]  # mypy cannot type defaults
        await in_batches(ctx.db, "jobs.erase", lambda tx, limit: queries.delete_user_sends(tx, user_id, hashes, limit))
        others = [job_id for job_id in jobs if job_id != ctx.job_id]
        for start in range(0, len(others), _BATCH):
            async with ctx.db.statement("jobs.erase") as tx:
                await queries.delete_jobs(tx, others[start : start + _BATCH])
        async with ctx.transaction("jobs.erase") as tx:
            await queries.delete_user_rows(tx, user_id, hashes)
        await self._outbox.forget(addresses, jobs)

    async def _delete_files(self, db: Database, user_id: UserId) -> None:
        last: UUID | None = UUID(int=0)
        while last is not None:
            async with db.read("jobs.erase_files") as conn:
                last, keys = await queries.list_artifact_keys(conn, user_id, last, _BATCH)
            await self._store.delete(keys)


async def _find_mail_jobs(db: Database, user_id: UserId, addresses: set[str]) -> list[UUID]:
    """Ids of the program's own jobs about the user or one of `addresses`, to which earlier ones of the user are added.

    The notice of a change names the address before it, so a second look follows. An address that the user only wanted
    to have may be another person's, and is not added.
    """
    found: dict[UUID, None] = {}
    for _ in range(2):
        after = UUID(int=0)
        while page := await _read_page(db, after):
            after = page[-1].id
            for job in page:
                args = orjson.loads(job.args)
                texts = set(_texts_of(args))
                is_about_user = str(user_id) in texts
                if is_about_user and args.get("email"):
                    addresses.add(canonical_email(args["email"]))
                if is_about_user and args.get("notice") == "account_deleted" and not job.is_over:
                    raise SnoozeJob(_NOTICE_SECONDS)
                if is_about_user or any(canonical_email(text) in addresses for text in texts if "@" in text):
                    found[job.id] = None
    return list(found)


async def _read_page(db: Database, after: UUID) -> list[queries.AddressedJob]:
    async with db.read("jobs.erase_find") as conn:
        return await queries.list_addressed_jobs(conn, after, _BATCH)


def _texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts_of(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts_of(part)
