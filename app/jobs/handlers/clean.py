"""The kind `jobs.clean`: the module's own housekeeping by the clock."""

import asyncio
from datetime import datetime

from app.jobs.service.cleaning import (
    delete_orphans,
    expire_artifacts,
    expire_surplus,
    prune_attempts,
    prune_jobs,
    prune_messages,
)
from app.jobs.service.mail_outbox import MailOutbox
from app.jobs.service.scratch import delete_abandoned_folders
from app.jobs.service.storage import ArtifactStore
from app.jobs.settings import JobsSettings
from app.kernel.database import in_batches
from app.kernel.http.idempotency import delete_expired_keys
from app.kernel.queue import JobArgs, JobContext, job

KIND_CLEAN = "jobs.clean"


class CleanArgs(JobArgs):
    """The time this run stands for."""

    scheduled_at: datetime | None = None


@job(KIND_CLEAN, args=CleanArgs, timeout=3000)
async def clean(ctx: JobContext, _: CleanArgs) -> dict[str, int]:
    """Answers how much of each was removed. Files come last, so that a store that is away keeps nothing else."""
    settings, store, outbox = ctx.service(JobsSettings), ctx.service(ArtifactStore), ctx.service(MailOutbox)
    await asyncio.to_thread(delete_abandoned_folders)
    return {
        "idempotency_keys": await in_batches(ctx.db, "jobs.idempotency_keys", delete_expired_keys),
        "attempts": await prune_attempts(ctx.db, ctx.clock, settings.retention_days),
        "webhook_messages": await prune_messages(ctx.db, settings.retention_days),
        "mail_sends": await outbox.prune_sends(ctx.db),
        "suppressions": await outbox.prune_suppressions(ctx.db),
        "surplus_artifacts": await expire_surplus(ctx.db, settings.user_file_bytes),
        "artifacts": await expire_artifacts(ctx.db, store),
        "jobs": await prune_jobs(ctx.db, settings.retention_days),
        "orphans": await delete_orphans(ctx.db, store, ctx.clock),
    }
