"""The kinds of jobs that this module runs, one file each."""

from typing import Any

from app.jobs.handlers.export_account import export_account
from app.jobs.handlers.export_events import export_events
from app.jobs.handlers.invoice_pdf import invoice_pdf
from app.jobs.handlers.report_activity import report_activity
from app.jobs.handlers.report_weekly import report_weekly
from app.jobs.handlers.webhook_deliver import webhook_publish
from app.kernel.queue import JobKind

JOB_KINDS: dict[str, JobKind[Any]] = {
    kind.name: kind
    for kind in (export_account, export_events, invoice_pdf, report_activity, report_weekly, webhook_publish)
}
