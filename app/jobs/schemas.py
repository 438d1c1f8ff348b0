"""Requests and answers of the jobs module."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from app.jobs.records import ApiState
from app.kernel.http import PageQuery, Schema, Timestamp


class SubmitJob(Schema):
    """A job to run in the background, at once or at `run_at`."""

    kind: str = Field(max_length=64, examples=["export.events"])
    args: dict[str, Any] = Field(examples=[{"format": "csv"}])
    run_at: Timestamp | None = None
    unique_key: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="While a job with this key is not over, submitting it again answers with that job."
    )


class JobList(PageQuery):
    """Filters of the list of jobs."""

    state: ApiState | None = None
    kind: str | None = Field(None, min_length=1, max_length=64)


class Progress(Schema):
    """How far a job is. `total` is an estimate."""

    done: int
    total: int | None
    message: str | None


class JobError(Schema):
    """Why the last attempt failed."""

    code: str
    message: str


class ArtifactLink(Schema):
    """A file that a job made."""

    name: str
    content_type: str
    size: int
    sha256: str
    expires_at: datetime


class JobView(Schema):
    """A job, as its owner sees it."""

    id: UUID
    kind: str
    state: ApiState
    attempt: int
    max_attempts: int
    progress: Progress | None
    result: dict[str, Any] | None
    error: JobError | None
    artifacts: list[ArtifactLink]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class JobPage(Schema):
    """Jobs, newest first."""

    items: list[JobView]
    next_cursor: str | None


class QueueView(Schema):
    """A lane. `oldest_seconds` is the age of its oldest job that could run."""

    lane: str
    paused: bool
    waiting: int
    running: int
    finished_last_minute: int
    oldest_seconds: float | None


class QueueList(Schema):
    """All lanes."""

    items: list[QueueView]


class AdminJobList(PageQuery):
    """Filter of the list of everybody's jobs."""

    state: ApiState | None = None


class AdminJobView(Schema):
    """A job, as an administrator sees it."""

    id: UUID
    user_id: UUID | None
    kind: str
    lane: str
    state: ApiState
    attempt: int
    max_attempts: int
    rescues: int
    worker_id: str | None
    error: JobError | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class AdminJobPage(Schema):
    """Everybody's jobs, newest first."""

    items: list[AdminJobView]
    next_cursor: str | None
