"""Queues, jobs of every user, and mail, for administrators."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field, model_validator

from app.jobs.records import JobState
from app.jobs.records.administration import BulkAction
from app.jobs.schemas.jobs import EXAMPLE_JOB, ArtifactLink, JobError, Progress
from app.kernel.http import (
    EXAMPLE_ID,
    EXAMPLE_TIME,
    CreatedAt,
    Email,
    Id,
    NextCursor,
    PageQuery,
    Schema,
    Timestamp,
    example,
)

EXAMPLE_ADMIN_JOB = EXAMPLE_JOB | {
    "user_id": EXAMPLE_ID,
    "queue": "bulk",
    "rescues": 0,
    "worker_id": "host:17",
    "args": {"format": "csv"},
    "attempts": [
        {
            "n": 1,
            "started_at": EXAMPLE_TIME,
            "finished_at": EXAMPLE_TIME,
            "worker": "host:17",
            "error": None,
        }
    ],
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "run_at": EXAMPLE_TIME,
}


class QueueResponse(Schema):
    """A queue."""

    queue: str = Field(description="Name of the queue.")
    paused: bool = Field(description="Whether no more of its jobs are started.")
    waiting: int = Field(description="Jobs that could run and wait for a worker; 100,000 stands for any larger number.")
    running: int = Field(description="Jobs that run.")
    finished_last_minute: int = Field(description="Jobs that reached a final state within the last minute.")
    failed_last_minute: int = Field(description="Those among them that failed.")
    oldest_seconds: float | None = Field(description="Age of the oldest waiting job in seconds; null: none waits.")


class QueueList(Schema):
    """A page of queues."""

    items: list[QueueResponse] = Field(description="Queues, by name.")
    next_cursor: NextCursor


class AdminJobQuery(PageQuery):
    """Filters of the list of every user's jobs: `since <= created_at < until`."""

    state: JobState | None = Field(None, description="Only jobs in this state.")
    kind: str | None = Field(None, min_length=1, max_length=64, description="Only jobs of this kind.")
    queue: str | None = Field(None, min_length=1, max_length=64, description="Only jobs of this queue.")
    user_id: Id | None = Field(None, description="Only jobs of this user.")
    error: str | None = Field(None, min_length=1, max_length=200, description="Only jobs with this code in `error`.")
    since: Timestamp | None = Field(None, description="Only jobs created from this time on.")
    until: Timestamp | None = Field(None, description="Only jobs created before this time.")


class AdminJobResponse(Schema):
    """A job, as an administrator sees it."""

    id: UUID = Field(description="Id of the job; ids grow with the time of submission.")
    user_id: UUID | None = Field(description="Owner of the job; null: the service itself.")
    kind: str = Field(description="The kind of job.")
    queue: str = Field(description="Queue of the job.")
    state: JobState = Field(description="Where the job is: `succeeded`, `failed` and `cancelled` are final.")
    attempt: int = Field(description="Number of the current or last attempt; 0: none yet.")
    max_attempts: int = Field(description="After how many failed attempts the job fails.")
    rescues: int = Field(description="How often the job was taken from a worker that had stopped answering.")
    worker_id: str | None = Field(description="Worker of the current or last attempt; null: none has started.")
    error: JobError | None = Field(description="Why the last attempt failed; null: none has.")
    created_at: CreatedAt
    started_at: datetime | None = Field(description="When the current or last attempt started; null: none has.")
    finished_at: datetime | None = Field(description="When the job reached a final state; null: not yet.")


class AdminJobAttempt(Schema):
    """A run of a job."""

    n: int = Field(description="Number of the run, counted from 1 over all retries of the job.")
    started_at: datetime = Field(description="When the run started.")
    finished_at: datetime | None = Field(description="When the run ended; null: it goes on.")
    worker: str | None = Field(description="The worker; null: unknown.")
    error: JobError | None = Field(description="Why the run failed; null: it has not.")


class AdminJobDetail(AdminJobResponse, json_schema_extra=example(EXAMPLE_ADMIN_JOB)):
    """A job with its arguments, runs and files, as an administrator sees it."""

    args: dict[str, Any] = Field(
        description="The arguments by the kind of job; the value of a secret field is `[redacted]`."
    )
    progress: Progress | None = Field(description="Progress of the job; null: not reported.")
    result: dict[str, Any] | None = Field(description="Set once the job has succeeded.")
    attempts: list[AdminJobAttempt] = Field(description="The newest runs, oldest first.")
    artifacts: list[ArtifactLink] = Field(description="Files of the job, once it has succeeded.")
    trace_id: str | None = Field(description="Trace of the request that created the job; null: unknown.")
    run_at: datetime = Field(description="Not before this time the job starts, or has started.")


class AdminJobPage(Schema):
    """A page of every user's jobs, newest first."""

    items: list[AdminJobResponse] = Field(description="Jobs, newest first.")
    next_cursor: NextCursor


class AdminJobFilter(Schema, json_schema_extra=example({"state": "failed", "kind": "export.events"})):
    """Conditions that a job has to fit, all of them; at least one."""

    state: JobState | None = Field(None, description="In this state.")
    kind: str | None = Field(None, min_length=1, max_length=64, description="Of this kind.")
    queue: str | None = Field(None, min_length=1, max_length=64, description="Of this queue.")
    user_id: Id | None = Field(None, description="Of this user.")
    error: str | None = Field(None, min_length=1, max_length=200, description="With this code in `error`.")
    since: Timestamp | None = Field(None, description="Created from this time on.")
    until: Timestamp | None = Field(None, description="Created before this time.")

    @model_validator(mode="after")
    def _is_some(self) -> "AdminJobFilter":
        if all(value is None for _, value in self):
            raise ValueError("name at least one condition")
        return self


class BulkJobsRequest(
    Schema, json_schema_extra=example({"action": "retry", "filter": {"state": "failed"}, "dry_run": True})
):
    """A change of all jobs that fit a filter when the request is made."""

    action: BulkAction = Field(
        description="`retry` starts failed and cancelled jobs over, `cancel` ends unfinished ones, `delete` deletes "
        "finished ones with their files; other jobs that fit stay as they are."
    )
    filter: AdminJobFilter = Field(description="Which jobs.")
    dry_run: bool = Field(default=False, description="Whether only to count the jobs.")


class BulkJobsCount(Schema, json_schema_extra=example({"matched": 10_000})):
    """The answer to a dry run."""

    matched: int = Field(
        description="Jobs that would be changed now, counted among the newest 100,000 of each queue, kind and state, "
        "of each state of the user, or with the error; 100,000 stands for any larger number."
    )


class AdminJobAccepted(Schema):
    """A job that does what was asked for."""

    job: AdminJobResponse = Field(description="The job; its `progress` counts, and its `result` tells the outcome.")


class ScheduleRun(Schema):
    """The newest run of a schedule, by the clock or on demand."""

    at: datetime = Field(description="The time that the run stands for.")
    job_id: UUID | None = Field(description="The job; null: it was put in by an older release.")
    state: JobState | None = Field(description="Where the job is; null: it was deleted.")
    finished_at: datetime | None = Field(description="When the job ended; null: not yet, or it was deleted.")


class ScheduleResponse(
    Schema,
    json_schema_extra=example(
        {
            "name": "report.weekly",
            "kind": "report.weekly",
            "cron": "0 6 * * MON",
            "timezone": "UTC",
            "paused": False,
            "next_run_at": EXAMPLE_TIME,
            "last_run": {"at": EXAMPLE_TIME, "job_id": EXAMPLE_ID, "state": "succeeded", "finished_at": EXAMPLE_TIME},
        }
    ),
):
    """Jobs that come by the clock."""

    name: str = Field(description="Name of the schedule.")
    kind: str = Field(description="The kind of its jobs.")
    cron: str = Field(description="When it runs: minute, hour, day of month, month, day of week.")
    timezone: str = Field(description="Time zone of these times.")
    paused: bool = Field(description="Whether it runs on demand only.")
    next_run_at: datetime | None = Field(description="When it runs next; null: it is paused.")
    last_run: ScheduleRun | None = Field(description="The newest run; null: none yet.")


class SchedulePage(Schema):
    """A page of schedules."""

    items: list[ScheduleResponse] = Field(description="Schedules, by name.")
    next_cursor: NextCursor


class WorkerResponse(
    Schema,
    json_schema_extra=example(
        {
            "id": "host:17",
            "version": "1.0.0",
            "queues": ["bulk", "default"],
            "slots": 50,
            "running": 3,
            "started_at": EXAMPLE_TIME,
            "last_heartbeat_at": EXAMPLE_TIME,
        }
    ),
):
    """A worker process."""

    id: str = Field(description="Host and process id.")
    version: str = Field(description="Version of the program.")
    queues: list[str] = Field(description="Queues that it serves.")
    slots: int = Field(description="Jobs that it runs at a time at most.")
    running: int = Field(description="Jobs that it ran at its last heartbeat.")
    started_at: datetime = Field(description="When it started.")
    last_heartbeat_at: datetime = Field(
        description="When it last said that it is there; one that was killed stays in the list for a day."
    )


class WorkerPage(Schema):
    """A page of workers."""

    items: list[WorkerResponse] = Field(description="Workers, by id.")
    next_cursor: NextCursor


class SuppressedAddress(Schema, json_schema_extra=example({"email": "ada@example.com"})):
    """An address to send to again."""

    email: Email = Field(description="The address.")


class SuppressionLifted(Schema):
    """Whether anything has changed."""

    lifted: bool = Field(description="Whether the address was suppressed until now.")
