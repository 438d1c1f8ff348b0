"""What other modules and the composition roots may use of jobs."""

from app.jobs.handlers import JOB_KINDS
from app.jobs.queries.submitting import insert_jobs, read_overview
from app.jobs.records import LANES, Overview
from app.jobs.service.execution import Executor
from app.jobs.service.relay import Relay
from app.jobs.service.runtime import JobsRuntime
from app.jobs.service.sending import WebhookSender
from app.jobs.service.storage import ArtifactStore
from app.jobs.service.watching import JobWatch
from app.jobs.tasks import SCHEDULES, JobsTasks

__all__ = [
    "JOB_KINDS",
    "LANES",
    "SCHEDULES",
    "ArtifactStore",
    "Executor",
    "JobWatch",
    "JobsRuntime",
    "JobsTasks",
    "Overview",
    "Relay",
    "WebhookSender",
    "insert_jobs",
    "read_overview",
]
