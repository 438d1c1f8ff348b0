"""The arguments and results of the kinds of jobs that users submit or find in their lists."""

from datetime import timedelta
from typing import Annotated, Literal
from uuid import UUID

from pydantic import MISSING, Field, model_validator
from typing_extensions import TypeAliasType

from app.kernel.http import Schema
from app.kernel.queue import JobArgs, Moment

ExportFormat = TypeAliasType("ExportFormat", Literal["csv", "ndjson", "xlsx", "parquet"])
_LONGEST_REPORT = timedelta(days=366)


class ExportEventsArgs(JobArgs):
    """Which events to export, and how."""

    format: ExportFormat = Field(description="Format of the file.")
    since: Moment | None = Field(None, description="Only events from this time on.")
    until: Moment | None = Field(None, description="Only events before this time.")

    @model_validator(mode="after")
    def _in_order(self) -> "ExportEventsArgs":
        if self.since is not None and self.until is not None and self.since > self.until:
            raise ValueError("`until` must not lie before `since`")
        return self


class ExportAccountArgs(JobArgs):
    """Takes no arguments."""


class ReportArgs(JobArgs):
    """The period of the report."""

    since: Moment = Field(description="Start of the period.")
    until: Moment = Field(description="End of the period, which it does not include; at most 366 days after `since`.")
    mail: bool = Field(
        default=False, description="Whether to send the report to your verified address too, if you want e-mail."
    )

    @model_validator(mode="after")
    def _in_order(self) -> "ReportArgs":
        if not timedelta(0) < self.until - self.since <= _LONGEST_REPORT:
            raise ValueError("`until` must lie behind `since`, by at most 366 days")
        return self


_Missing = Annotated[
    list[str] | MISSING,
    Field(
        description="Characters that no font of the service has, as `U+1681`, at most 100; absent if there are none."
    ),
]


class ExportEventsResult(Schema):
    """What an export of events has made; the file is the artifact `events.<format>`."""

    rows: int = Field(description="How many events the file has.")


class ExportAccountResult(Schema):
    """What a copy of the account has made; the file is the artifact `account.zip`."""

    events: int = Field(description="How many events the copy has.")


class ReportResult(Schema):
    """What a report has made; the file is the artifact `activity.pdf`."""

    events: int = Field(description="How many events the report counts.")
    missing_characters: _Missing = MISSING


class InvoicePdfResult(Schema):
    """The invoice whose PDF was made; the file is the artifact `invoice.pdf`."""

    invoice_id: UUID = Field(description="Id of the invoice.")
    missing_characters: _Missing = MISSING


EmailState = TypeAliasType("EmailState", Literal["sent", "withheld"])


class InvoiceEmailOutcome(Schema):
    """The outcome of the e-mail."""

    state: EmailState = Field(description="Whether the e-mail was sent.")
    reason: str | MISSING = Field(
        MISSING, description="Why the e-mail was withheld, as a machine-readable code; absent if it was sent."
    )


class InvoiceEmailResult(Schema):
    """The invoice whose e-mail was handled."""

    invoice_id: UUID = Field(description="Id of the invoice.")
    email: InvoiceEmailOutcome = Field(description="The outcome of the e-mail.")


class BulkResult(Schema):
    """How many jobs a bulk change was about."""

    done: int = Field(description="How many jobs were changed.")
    skipped: int = Field(
        description="How many jobs were left as they are, because they had left the state meanwhile or an unfinished "
        "job has their unique key."
    )


class WebhookReplayResult(Schema):
    """What a replay of a webhook endpoint has begun anew."""

    done: int = Field(description="How many deliveries are sent again.")
