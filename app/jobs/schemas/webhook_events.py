"""The bodies of webhooks: what is sent to an endpoint for each type of event."""

from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

from pydantic import Field
from typing_extensions import TypeAliasType

from app.kernel.http import EXAMPLE_ID, Schema, Timestamp, example

FinishedJobKind = TypeAliasType("FinishedJobKind", Literal["export.events", "export.account", "report.activity"])


def _sent(event_type: str, data: Mapping[str, Any]) -> Any:
    return example({"type": event_type, "timestamp": "2026-01-31T12:00:00.000000Z", "data": dict(data)})


class _Event(Schema):
    timestamp: Timestamp = Field(description="When the event was published; the same in every attempt.")


class UserRegisteredData(Schema):
    """The account that registered."""

    user_id: UUID = Field(description="Id of the user.")


class UserRegisteredEvent(_Event, json_schema_extra=_sent("user.registered", {"user_id": EXAMPLE_ID})):
    """An account was registered."""

    type: Literal["user.registered"] = Field(description="Type of the event.")
    data: UserRegisteredData


class UserUpdatedData(Schema):
    """The profile that was changed."""

    user_id: UUID = Field(description="Id of the user.")
    fields: list[str] = Field(description="Names of the fields of the account that were changed.")


class UserUpdatedEvent(
    _Event, json_schema_extra=_sent("user.updated", {"user_id": EXAMPLE_ID, "fields": ["display_name"]})
):
    """A profile was changed."""

    type: Literal["user.updated"] = Field(description="Type of the event.")
    data: UserUpdatedData


class UserDeletedData(Schema):
    """The account that was closed."""

    user_id: UUID = Field(description="Id of the user.")


class UserDeletedEvent(_Event, json_schema_extra=_sent("user.deleted", {"user_id": EXAMPLE_ID})):
    """An account was closed."""

    type: Literal["user.deleted"] = Field(description="Type of the event.")
    data: UserDeletedData


class SessionRevokedData(Schema):
    """The session that ended."""

    session_id: UUID = Field(description="Id of the session.")
    reason: str = Field(description="Why it ended, as a machine-readable code, for instance `logged_out`.")


class SessionRevokedEvent(
    _Event, json_schema_extra=_sent("session.revoked", {"session_id": EXAMPLE_ID, "reason": "logged_out"})
):
    """A session has ended."""

    type: Literal["session.revoked"] = Field(description="Type of the event.")
    data: SessionRevokedData


class JobEndData(Schema):
    """The job that reached a final state."""

    job_id: UUID = Field(description="Id of the job.")
    kind: FinishedJobKind = Field(description="The kind of job.")


class JobSucceededEvent(
    _Event, json_schema_extra=_sent("job.succeeded", {"job_id": EXAMPLE_ID, "kind": "export.events"})
):
    """A job that you submitted has succeeded."""

    type: Literal["job.succeeded"] = Field(description="Type of the event.")
    data: JobEndData


class JobFailedEvent(_Event, json_schema_extra=_sent("job.failed", {"job_id": EXAMPLE_ID, "kind": "export.events"})):
    """A job that you submitted has failed, and is not tried again."""

    type: Literal["job.failed"] = Field(description="Type of the event.")
    data: JobEndData


class InvoiceIssuedData(Schema):
    """The invoice that was issued."""

    invoice_id: UUID = Field(description="Id of the invoice.")
    number: str = Field(description="Number of the invoice.")
    order_id: str = Field(description="The order that the invoice is for.")
    currency: str = Field(description="Currency of the amounts (ISO 4217).")
    total_minor: int = Field(description="Total in the currency's minor unit, tax included.")


class InvoiceIssuedEvent(
    _Event,
    json_schema_extra=_sent(
        "invoice.issued",
        {
            "invoice_id": EXAMPLE_ID,
            "number": "2026-0001",
            "order_id": "A-17",
            "currency": "EUR",
            "total_minor": 42_840,
        },
    ),
):
    """An invoice was issued: its PDF exists, and its e-mail was sent or withheld."""

    type: Literal["invoice.issued"] = Field(description="Type of the event.")
    data: InvoiceIssuedData


class WebhookTestData(Schema):
    """The endpoint that is tested."""

    endpoint_id: UUID = Field(description="Id of the endpoint.")


class WebhookTestEvent(_Event, json_schema_extra=_sent("webhook.test", {"endpoint_id": EXAMPLE_ID})):
    """The owner of the endpoint has asked for a test."""

    type: Literal["webhook.test"] = Field(description="Type of the event.")
    data: WebhookTestData


# By type; a test is sent to an endpoint whatever types it asks for.
WEBHOOK_EVENTS: Mapping[str, type[Schema]] = {
    "user.registered": UserRegisteredEvent,
    "user.updated": UserUpdatedEvent,
    "user.deleted": UserDeletedEvent,
    "session.revoked": SessionRevokedEvent,
    "job.succeeded": JobSucceededEvent,
    "job.failed": JobFailedEvent,
    "invoice.issued": InvoiceIssuedEvent,
    "webhook.test": WebhookTestEvent,
}
