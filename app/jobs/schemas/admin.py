"""Queues, jobs of every user, and mail, for administrators."""

from datetime import datetime
from uuid import UUID

from pydantic import Field

from app.jobs.records import JobState
from app.jobs.schemas.jobs import JobError
from app.kernel.http import CreatedAt, Email, NextCursor, PageQuery, Schema, example


class QueueView(Schema):
    """A queue."""

    queue: str = Field(description="Name of the queue.")
    paused: bool = Field(description="Whether no more of its jobs are started.")
    waiting: int = Field(description="Jobs that could run and wait for a worker; 100,000 stands for any larger number.")
    running: int = Field(description="Jobs that run.")
    finished_last_minute: int = Field(description="Jobs that reached a final state within the last minute.")
    oldest_seconds: float | None = Field(description="Age of the oldest waiting job in seconds; null: none waits.")


class QueueList(Schema):
    """A page of queues."""

    items: list[QueueView] = Field(description="Queues, by name.")
    next_cursor: NextCursor


class AdminJobList(PageQuery):
    """Filter of the list of every user's jobs."""

    state: JobState | None = Field(None, description="Only jobs in this state.")


class AdminJobView(Schema):
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


class AdminJobPage(Schema):
    """A page of every user's jobs, newest first."""

    items: list[AdminJobView] = Field(description="Jobs, newest first.")
    next_cursor: NextCursor


class SuppressedAddress(Schema, json_schema_extra=example({"email": "ada@example.com"})):
    """An address to send to again."""

    email: Email = Field(description="The address.")


class SuppressionLifted(Schema):
    """Whether anything has changed."""

    lifted: bool = Field(description="Whether the address was suppressed until now.")
