"""The kinds that need more than their context, and the module's own housekeeping by the clock."""

import asyncio
from datetime import datetime
from typing import Any

from app.jobs.handlers.email_send import email_send_kind
from app.jobs.handlers.invoice_email import invoice_email_kind
from app.jobs.handlers.report_weekly import KIND_WEEKLY, report_email_kind
from app.jobs.handlers.webhook_deliver import WebhookDeliverer
from app.jobs.service.cleaning import (
    delete_orphans,
    expire_artifacts,
    expire_surplus,
    prune_attempts,
    prune_jobs,
    prune_messages,
)
from app.jobs.service.documents import use_fonts
from app.jobs.service.mail_outbox import MailOutbox
from app.jobs.service.scheduling import Schedule
from app.jobs.service.scratch import delete_abandoned_folders
from app.jobs.service.sending import WebhookSender
from app.jobs.service.storage import ArtifactStore
from app.jobs.settings import JobsSettings
from app.kernel.database import in_batches
from app.kernel.http.idempotency import delete_expired_keys
from app.kernel.queue import JobArgs, JobContext, JobKind, job
from app.kernel.sealing import Keys

KIND_CLEAN = "jobs.clean"

SCHEDULES = (
    Schedule(name="jobs.clean", kind=KIND_CLEAN, cron="17 * * * *"),
    Schedule(name="report.weekly", kind=KIND_WEEKLY, cron="0 6 * * MON"),
)


class CleanArgs(JobArgs):
    """The time this run stands for."""

    scheduled_at: datetime | None = None


class JobsTasks:
    """The handlers that need more than their context."""

    def __init__(
        self,
        store: ArtifactStore,
        outbox: MailOutbox,
        sender: WebhookSender,
        keys: Keys,
        settings: JobsSettings,
        *,
        product: str,
        public_url: str,
    ) -> None:
        """`product` is its name for people, `public_url` the base of links."""
        use_fonts(settings.font_paths)
        self._store = store
        self._outbox = outbox
        self._deliverer = WebhookDeliverer(sender, keys)
        self._settings = settings
        self._product = product
        self._public_url = public_url
        self._keys = keys

    def kinds(self) -> dict[str, JobKind[Any]]:
        """The kinds, by name."""
        kinds: tuple[JobKind[Any], ...] = (
            job(KIND_CLEAN, args=CleanArgs, timeout=3000)(self._clean),
            email_send_kind(self._outbox, self._product),
            invoice_email_kind(self._outbox, self._store),
            report_email_kind(self._outbox, self._store, self._keys, self._product, self._public_url),
            self._deliverer.kind(),
        )
        return {kind.name: kind for kind in kinds}

    async def _clean(self, ctx: JobContext, _: CleanArgs) -> dict[str, int]:
        """Answers how much of each was removed. Files come last, so that a store that is away keeps nothing else."""
        await asyncio.to_thread(delete_abandoned_folders)
        return {
            "idempotency_keys": await in_batches(ctx.db, "jobs.idempotency_keys", delete_expired_keys),
            "attempts": await prune_attempts(ctx.db, ctx.clock, self._settings.retention_days),
            "webhook_messages": await prune_messages(ctx.db, self._settings.retention_days),
            "mail_sends": await self._outbox.prune_sends(ctx.db),
            "suppressions": await self._outbox.prune_suppressions(ctx.db),
            "surplus_artifacts": await expire_surplus(ctx.db, self._settings.user_file_bytes),
            "artifacts": await expire_artifacts(ctx.db, self._store),
            "jobs": await prune_jobs(ctx.db, self._settings.retention_days),
            "orphans": await delete_orphans(ctx.db, self._store, ctx.clock),
        }
