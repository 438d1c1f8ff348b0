"""The kinds of jobs that this module runs, one file each, and those that run by the clock."""

from typing import Any

from app.jobs.handlers.bulk import bulk
from app.jobs.handlers.clean import KIND_CLEAN, clean
from app.jobs.handlers.email_send import email_send
from app.jobs.handlers.expire_events import KIND_EXPIRE_EVENTS, expire_old_events
from app.jobs.handlers.export_account import export_account
from app.jobs.handlers.export_events import export_events
from app.jobs.handlers.invoice_email import invoice_email
from app.jobs.handlers.invoice_pdf import invoice_pdf
from app.jobs.handlers.report_activity import report_activity
from app.jobs.handlers.report_weekly import KIND_WEEKLY, report_email, report_weekly
from app.jobs.handlers.webhook_deliver import webhook_deliver, webhook_publish
from app.jobs.handlers.webhook_replay import webhook_replay
from app.jobs.service.scheduling import Schedule
from app.kernel.queue import JobKind

_KINDS: tuple[JobKind[Any], ...] = (
    bulk,
    clean,
    email_send,
    expire_old_events,
    export_account,
    export_events,
    invoice_email,
    invoice_pdf,
    report_activity,
    report_email,
    report_weekly,
    webhook_deliver,
    webhook_publish,
    webhook_replay,
)
JOB_KINDS = {kind.name: kind for kind in _KINDS}

SCHEDULES = (
    Schedule(name="jobs.clean", kind=KIND_CLEAN, cron="17 * * * *"),
    Schedule(name="users.expire_events", kind=KIND_EXPIRE_EVENTS, cron="40 3 * * *"),
    Schedule(name="report.weekly", kind=KIND_WEEKLY, cron="0 6 * * MON"),
)
