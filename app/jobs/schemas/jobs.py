"""Jobs of the caller: what is submitted, and what is answered."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import TypeAliasType

from app.jobs.records import JobState
from app.jobs.schemas.job_kinds import (
    BulkResult,
    ExportAccountArgs,
    ExportAccountResult,
    ExportEventsArgs,
    ExportEventsResult,
    InvoiceEmailResult,
    InvoicePdfResult,
    ReportArgs,
    ReportResult,
    WebhookReplayResult,
)
from app.kernel.http import EXAMPLE_ID, CreatedAt, NextCursor, PageQuery, Schema, Timestamp, example

# Kinds that the service itself enqueues for a user, with results of no fixed form.
SystemJobKind = TypeAliasType(
    "SystemJobKind",
    Literal["email.send", "report.email", "webhook.deliver", "webhook.publish"],
)
_SUBMISSION = {"kind": "export.events", "args": {"format": "csv"}}
EXAMPLE_JOB = {
    "id": "0198f000-0000-7000-8000-000000000000",
    "kind": "export.events",
    "state": "succeeded",
    "attempt": 1,
    "max_attempts": 5,
    "progress": {"done": 2, "total": 2, "message": None},
    "result": {"rows": 2},
    "error": None,
    "artifacts": [
        {
            "name": "events.csv",
            "content_type": "text/csv; charset=utf-8",
            "size": 182,
            "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "expires_at": "2026-02-07T12:00:00.000000Z",
        }
    ],
    "created_at": "2026-01-31T12:00:00.000000Z",
    "started_at": "2026-01-31T12:00:00.100000Z",
    "finished_at": "2026-01-31T12:00:00.300000Z",
}


class _Submission(Schema):
    run_at: Timestamp | None = Field(None, description="Not before this time, at most a year ahead. Default: at once.")
    unique_key: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None,
        description="While your job of this kind and key is unfinished, submitting it again answers with that job. "
        "1 to 200 characters.",
    )


class SubmitExportEvents(_Submission):
    """Export your events as a file."""

    kind: Literal["export.events"] = Field(description="The kind of job.")
    args: ExportEventsArgs


class SubmitExportAccount(_Submission):
    """Make a copy of everything that is stored about you, as JSON files in a ZIP archive."""

    kind: Literal["export.account"] = Field(description="The kind of job.")
    args: ExportAccountArgs


class SubmitReportActivity(_Submission):
    """Make a report of your events as a PDF."""

    kind: Literal["report.activity"] = Field(description="The kind of job.")
    args: ReportArgs


class SubmitJob(_Submission, json_schema_extra=example(_SUBMISSION)):
    """A job to run in the background, at once or at `run_at`.

    The model takes any kind: what there is, the registry of kinds decides, whose errors are `unknown_kind` and
    `invalid_args`. The document has a schema for each kind.
    """

    kind: str = Field(max_length=64)
    args: dict[str, Any]

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(_SUBMISSIONS.core_schema) | {
            "title": cls.__name__,
            "description": "A job to run in the background, at once or at `run_at`; `args` by its `kind`.",
            **example(_SUBMISSION),
        }


_SUBMISSIONS = TypeAdapter[Any](
    Annotated[SubmitExportEvents | SubmitExportAccount | SubmitReportActivity, Field(discriminator="kind")]
)


class JobQuery(PageQuery):
    """Filters of the list of jobs."""

    state: JobState | None = Field(None, description="Only jobs in this state.")
    kind: str | None = Field(None, min_length=1, max_length=64, description="Only jobs of this kind.")


class Progress(Schema):
    """Progress of a job."""

    done: int = Field(description="Number of items done.")
    total: int | None = Field(description="Estimated total number of items; null: unknown.")
    message: str | None = Field(description="What the job is doing, in prose; null: unknown.")


class JobError(Schema):
    """Why the last attempt failed."""

    code: str = Field(description="What went wrong, as a machine-readable code.")
    message: str = Field(description="What went wrong, in prose.")


class ArtifactLink(Schema):
    """A file that a job has made."""

    name: str = Field(description="Name of the file, the last part of its path below `/v1/jobs/{job_id}/artifacts/`.")
    content_type: str = Field(description="Media type of the file.")
    size: int = Field(description="Size in bytes.")
    sha256: str = Field(description="SHA-256 of the content, 64 hexadecimal digits.")
    expires_at: datetime = Field(description="When the file is deleted.")


class _Job(Schema):
    id: UUID = Field(description="Id of the job; ids grow with the time of submission.")
    state: JobState = Field(description="Where the job is: `succeeded`, `failed` and `cancelled` are final.")
    attempt: int = Field(description="Number of the current or last attempt; 0: none yet.")
    max_attempts: int = Field(description="After how many failed attempts the job fails.")
    progress: Progress | None = Field(description="Progress of the job; null: not reported.")
    error: JobError | None = Field(description="Why the last attempt failed; null: none has.")
    artifacts: list[ArtifactLink] = Field(description="Files of the job, once it has succeeded.")
    created_at: CreatedAt
    started_at: datetime | None = Field(description="When the current or last attempt started; null: none has.")
    finished_at: datetime | None = Field(description="When the job reached a final state; null: not yet.")


class ExportEventsJob(_Job, json_schema_extra=example(EXAMPLE_JOB)):
    """An export of events."""

    kind: Literal["export.events"] = Field(description="The kind of job.")
    result: ExportEventsResult | None = Field(description="Set once the job has succeeded.")


class ExportAccountJob(_Job):
    """A copy of everything that is stored about the user."""

    kind: Literal["export.account"] = Field(description="The kind of job.")
    result: ExportAccountResult | None = Field(description="Set once the job has succeeded.")


class ReportActivityJob(_Job):
    """A report of events."""

    kind: Literal["report.activity"] = Field(description="The kind of job.")
    result: ReportResult | None = Field(description="Set once the job has succeeded.")


class InvoicePdfJob(_Job):
    """The making of an invoice's PDF."""

    kind: Literal["invoice.pdf"] = Field(description="The kind of job.")
    result: InvoicePdfResult | None = Field(description="Set once the job has succeeded.")


class InvoiceEmailJob(_Job):
    """The sending of an invoice."""

    kind: Literal["invoice.email"] = Field(description="The kind of job.")
    result: InvoiceEmailResult | None = Field(description="Set once the job has succeeded.")


class BulkJob(_Job):
    """A change of all jobs that fit a filter, as an administrator has asked for it."""

    kind: Literal["jobs.bulk"] = Field(description="The kind of job.")
    result: BulkResult | None = Field(description="Set once the job has succeeded.")


class WebhookReplayJob(_Job):
    """The sending of earlier events to a webhook endpoint."""

    kind: Literal["webhook.replay"] = Field(description="The kind of job.")
    result: WebhookReplayResult | None = Field(description="Set once the job has succeeded.")


class SystemJob(_Job):
    """A job that the service has enqueued by itself, such as the delivery of a webhook."""

    kind: SystemJobKind = Field(description="The kind of job.")
    result: dict[str, Any] | None = Field(description="Set once the job has succeeded; its members may change.")


JobResponse = TypeAliasType(
    "JobResponse",
    Annotated[
        ExportEventsJob
        | ExportAccountJob
        | ReportActivityJob
        | InvoicePdfJob
        | InvoiceEmailJob
        | BulkJob
        | WebhookReplayJob
        | SystemJob,
        Field(discriminator="kind", description="A job, as its owner sees it; `result` by its `kind`."),
    ],
)


class JobPage(Schema, json_schema_extra=example({"items": [EXAMPLE_JOB], "next_cursor": None})):
    """A page of jobs, newest first."""

    items: list[JobResponse] = Field(description="Jobs, newest first.")
    next_cursor: NextCursor


class StreamTicket(Schema, json_schema_extra=example({"url": f"/v1/jobs/{EXAMPLE_ID}/events/stream?ticket=x"})):
    """Leave to open one stream without a token."""

    url: str = Field(
        description="Address of the stream, relative to the service, for one use within a minute.",
        json_schema_extra={"format": "uri-reference"},
    )
