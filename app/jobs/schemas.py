"""Requests and answers of the jobs module."""

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from pydantic import MISSING, AfterValidator, Field, model_validator

from app.jobs.records import ApiState
from app.jobs.records.invoices import CURRENCY_DIGITS, MAX_MINOR, InvoiceStatus
from app.jobs.records.webhooks import ALL_EVENTS, EVENT_TYPES
from app.kernel.http import BodyLimits, Email, Id, PageQuery, Schema, Timestamp, example
from app.kernel.text import VisibleLine, VisibleText


class SubmitJob(Schema, json_schema_extra=example({"kind": "export.events", "args": {"format": "csv"}})):
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
    """The lanes."""

    items: list[QueueView]
    next_cursor: str | None


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


class SuppressedAddress(Schema, json_schema_extra=example({"email": "ada@example.com"})):
    """An address that is to be written to again."""

    email: Email


class SuppressionLifted(Schema):
    """Whether the address was suppressed until now."""

    lifted: bool


def _known_currency(code: str) -> str:
    if code not in CURRENCY_DIGITS:
        raise ValueError("This is no active currency code of ISO 4217")
    return code


class Customer(Schema):
    """Who pays."""

    name: Annotated[str, VisibleLine(200)]
    email: Email
    address: Annotated[str, VisibleText(1000)]


class InvoiceLine(Schema):
    """A line; the price is in the currency's minor unit."""

    description: Annotated[str, VisibleText(500)]
    quantity: int = Field(ge=1, le=1_000_000)
    unit_price_minor: int = Field(ge=0, le=1_000_000_000)


class IssueInvoice(
    Schema,
    json_schema_extra=example(
        {
            "number": "2026-0001",
            "order_id": "A-17",
            "customer": {"name": "Ada Lovelace", "email": "ada@example.com", "address": "12 St James's Square, London"},
            "currency": "EUR",
            "lines": [{"description": "Analytical engine, one hour", "quantity": 3, "unit_price_minor": 12000}],
            "tax_rate_percent": "19",
        }
    ),
):
    """An invoice to be made. Tax is taken on the subtotal and rounded half up to the minor unit."""

    body_limits: ClassVar = BodyLimits(max_bytes=512 * 1024, max_values=2_000)

    number: Annotated[str, VisibleLine(64)]
    order_id: Annotated[str, VisibleLine(64)]
    customer: Customer
    currency: Annotated[str, AfterValidator(_known_currency)] = Field(pattern=r"^[A-Z]{3}$", examples=["EUR"])
    lines: list[InvoiceLine] = Field(min_length=1, max_length=200)
    tax_rate_percent: str = Field("0", pattern=r"^(100(\.0{1,4})?|[0-9]{1,2}(\.[0-9]{1,4})?)$", examples=["19", "7.7"])
    notes: str | None = Field(None, max_length=2000)

    @model_validator(mode="after")
    def _bounded(self) -> "IssueInvoice":
        if sum(line.quantity * line.unit_price_minor for line in self.lines) > MAX_MINOR:
            raise ValueError("The total is too large")
        return self


class InvoiceView(Schema):
    """A stored invoice."""

    id: UUID
    number: str
    order_id: str
    customer: Customer
    currency: str
    lines: list[InvoiceLine]
    tax_rate_percent: str
    notes: str | None
    subtotal_minor: int
    tax_minor: int
    total_minor: int
    status: InvoiceStatus
    created_at: datetime


class InvoiceAccepted(Schema):
    """The invoice, and the job that makes it."""

    invoice: InvoiceView
    job: JobView


class InvoicePage(Schema):
    """Invoices, newest first."""

    items: list[InvoiceView]
    next_cursor: str | None


def _known_event(name: str) -> str:
    if name != ALL_EVENTS and name not in EVENT_TYPES:
        raise ValueError("There is no such event type")
    return name


_EventName = Annotated[str, Field(json_schema_extra={"enum": [ALL_EVENTS, *EVENT_TYPES]}), AfterValidator(_known_event)]
EventTypes = Annotated[list[_EventName], Field(min_length=1, max_length=50)]


class CreateEndpoint(
    Schema,
    json_schema_extra=example({"url": "https://example.com/hooks", "event_types": ["job.succeeded", "job.failed"]}),
):
    """Where events go; `*` asks for all of them."""

    url: str = Field(min_length=1, max_length=2048)
    event_types: EventTypes
    description: Annotated[str, VisibleText(500)] | None = None


class PatchEndpoint(Schema, json_schema_extra=example({"event_types": ["*"], "description": None})):
    """A JSON merge patch; only the description can be null."""

    url: Annotated[str, Field(min_length=1, max_length=2048)] | MISSING = MISSING
    event_types: EventTypes | MISSING = MISSING
    description: Annotated[str, VisibleText(500)] | None = None


class EndpointView(Schema):
    """An endpoint."""

    id: UUID
    url: str
    event_types: list[str]
    description: str | None
    status: Literal["active", "disabled"]
    disabled_reason: str | None
    disabled_at: datetime | None
    created_at: datetime


class EndpointCreated(EndpointView):
    """An endpoint with its secret, which is shown only here."""

    secret: str


class EndpointList(Schema):
    """Endpoints, oldest first."""

    items: list[EndpointView]
    next_cursor: str | None


class EventType(Schema):
    """Something that endpoints can ask for."""

    type: str
    description: str


class EventTypeList(Schema):
    """The catalogue."""

    items: list[EventType]
    next_cursor: str | None


DeliveryState = Literal["pending", "delivered", "failed"]


class DeliveryList(PageQuery):
    """Filters of the list of deliveries."""

    endpoint_id: Id | None = None
    state: DeliveryState | None = None


class DeliveryView(Schema):
    """A message on its way to an endpoint."""

    id: UUID
    endpoint_id: UUID
    message_id: UUID
    event_type: str
    state: DeliveryState
    attempts: int
    last_status: int | None
    last_error: str | None
    last_response: str | None
    last_ms: int | None
    next_at: datetime | None
    created_at: datetime
    delivered_at: datetime | None


class DeliveryPage(Schema):
    """Deliveries, newest first."""

    items: list[DeliveryView]
    next_cursor: str | None
