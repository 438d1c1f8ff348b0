"""What other modules and the composition roots may use of jobs."""

from app.jobs.errors import UnsubscribeLinkExpired, UnsubscribeLinkInvalid
from app.jobs.handlers import JOB_KINDS, SCHEDULES
from app.jobs.handlers.webhook_deliver import WebhookDeliverer
from app.jobs.queries.submitting import insert_jobs, list_overviews
from app.jobs.queries.webhook_endpoints import list_webhook_subscribers
from app.jobs.records import (
    COUNTED_AT_MOST,
    QUEUES,
    STATE_FILTERS,
    AdminJob,
    JobOverview,
    JobState,
    api_state,
    queue_shares,
)
from app.jobs.records.administration import JobFilter
from app.jobs.records.invoices import format_minor
from app.jobs.schemas.webhook_events import WEBHOOK_EVENTS
from app.jobs.service.administration import (
    cancel_any_job,
    get_any_job,
    list_all_jobs,
    list_attempts,
    list_queues,
    pause_queue,
    retry_any_job,
    retry_failed_jobs,
)
from app.jobs.service.documents import FONT_PACKAGES, SCRIPTS, find_missing_scripts, use_fonts
from app.jobs.service.endpoints import disable_endpoints
from app.jobs.service.erasure import Eraser
from app.jobs.service.execution import RUN_BUCKETS, Executor
from app.jobs.service.health import WorkerHealth
from app.jobs.service.mail_outbox import MailOutbox, lift_suppression
from app.jobs.service.presence import report_worker, report_worker_end
from app.jobs.service.relay import Relay
from app.jobs.service.run_context import JobServices
from app.jobs.service.runtime import JobsRuntime
from app.jobs.service.scratch import delete_abandoned_folders
from app.jobs.service.sending import WebhookSender
from app.jobs.service.storage import ArtifactStore, store_problem
from app.jobs.service.submitting import Submitted, submission_group_commit
from app.jobs.service.suspending import resume_user, suspend_user
from app.jobs.service.turns import Turns, user_caps
from app.jobs.service.unsubscribing import unsubscribe
from app.jobs.service.watching import JobWatch

__all__ = [
    "COUNTED_AT_MOST",
    "FONT_PACKAGES",
    "JOB_KINDS",
    "QUEUES",
    "RUN_BUCKETS",
    "SCHEDULES",
    "SCRIPTS",
    "STATE_FILTERS",
    "WEBHOOK_EVENTS",
    "AdminJob",
    "ArtifactStore",
    "Eraser",
    "Executor",
    "JobFilter",
    "JobOverview",
    "JobServices",
    "JobState",
    "JobWatch",
    "JobsRuntime",
    "MailOutbox",
    "Relay",
    "Submitted",
    "Turns",
    "UnsubscribeLinkExpired",
    "UnsubscribeLinkInvalid",
    "WebhookDeliverer",
    "WebhookSender",
    "WorkerHealth",
    "api_state",
    "cancel_any_job",
    "delete_abandoned_folders",
    "disable_endpoints",
    "find_missing_scripts",
    "format_minor",
    "get_any_job",
    "insert_jobs",
    "lift_suppression",
    "list_all_jobs",
    "list_attempts",
    "list_overviews",
    "list_queues",
    "list_webhook_subscribers",
    "pause_queue",
    "queue_shares",
    "report_worker",
    "report_worker_end",
    "resume_user",
    "retry_any_job",
    "retry_failed_jobs",
    "store_problem",
    "submission_group_commit",
    "suspend_user",
    "unsubscribe",
    "use_fonts",
    "user_caps",
]
