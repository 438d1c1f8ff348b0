"""The kinds of jobs that this module runs, one file each."""

from typing import Any

from app.jobs.handlers.export_events import export_events
from app.jobs.handlers.invoice_pdf import invoice_pdf
from app.jobs.handlers.webhook_deliver import webhook_publish
from app.kernel.queue import JobKind

JOB_KINDS: dict[str, JobKind[Any]] = {kind.name: kind for kind in (export_events, invoice_pdf, webhook_publish)}
