"""Background work, as any module sees it: declare kinds with `@job`, put rows in with `Queue.enqueue`.

Postgres holds the truth; Redis holds ids and may be empty, stale or down. `consumer` is the worker's side and the only
importer of arq beside `app.worker`; it is not imported here, so that an API process does not load it.
"""

from app.kernel.queue.contracts import Allowance, Enqueued, JobRef, NewJob
from app.kernel.queue.kinds import (
    REDACTED,
    SECRET,
    ArtifactWriter,
    DataAccess,
    JobArgs,
    JobContext,
    JobKind,
    Moment,
    PermanentJobError,
    RetryJob,
    ServiceT,
    SnoozeJob,
    job,
)
from app.kernel.queue.producer import CONTROL_CHANNEL, EPOCH_KEY, InsertJobs, Queue

__all__ = [
    "CONTROL_CHANNEL",
    "EPOCH_KEY",
    "REDACTED",
    "SECRET",
    "Allowance",
    "ArtifactWriter",
    "DataAccess",
    "Enqueued",
    "InsertJobs",
    "JobArgs",
    "JobContext",
    "JobKind",
    "JobRef",
    "Moment",
    "NewJob",
    "PermanentJobError",
    "Queue",
    "RetryJob",
    "ServiceT",
    "SnoozeJob",
    "job",
]
