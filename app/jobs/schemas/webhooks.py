"""Webhook endpoints and deliveries of the caller."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import MISSING, Field, model_validator
from typing_extensions import TypeAliasType

from app.jobs.records.webhooks import DeliveryState, FinishedDeliveryState, WebhookEventType
from app.kernel.http import CreatedAt, Id, NextCursor, PageQuery, Schema, Timestamp, example
from app.kernel.validation.text import VisibleText

EventTypeFilter = TypeAliasType(
    "EventTypeFilter",
    Literal[
        "*",
        "user.registered",
        "user.updated",
        "user.deleted",
        "session.revoked",
        "job.succeeded",
        "job.failed",
        "invoice.issued",
    ],
)
EventTypes = Annotated[list[EventTypeFilter], Field(min_length=1, max_length=50)]
EndpointStatus = TypeAliasType("EndpointStatus", Literal["active", "disabled"])
_EVENT_TYPES = "Types of events to send; `*` stands for all but `user.registered`."
_URL = "Address that events are sent to by POST, at most 2,048 characters; private and local addresses are refused."
_EXAMPLE_ENDPOINT: dict[str, Any] = {
    "id": "0198f000-0000-7000-8000-000000000000",
    "url": "https://example.com/hooks",
    "event_types": ["job.failed", "job.succeeded"],
    "description": None,
    "status": "active",
    "disabled_reason": None,
    "disabled_at": None,
    "created_at": "2026-01-31T12:00:00.000000Z",
}


class CreateEndpointRequest(
    Schema,
    json_schema_extra=example({"url": "https://example.com/hooks", "event_types": ["job.succeeded", "job.failed"]}),
):
    """An address to send events to."""

    url: str = Field(min_length=1, max_length=2048, description=_URL, json_schema_extra={"format": "uri"})
    event_types: EventTypes = Field(description=_EVENT_TYPES)
    description: Annotated[str, VisibleText(500)] | None = Field(
        None, description="A note for yourself, at most 500 characters."
    )


class PatchEndpointRequest(Schema, json_schema_extra=example({"event_types": ["*"], "description": None})):
    """A JSON merge patch (RFC 7396); only the description can be null."""

    url: Annotated[str, Field(min_length=1, max_length=2048)] | MISSING = Field(
        MISSING, description=_URL, json_schema_extra={"format": "uri"}
    )
    event_types: EventTypes | MISSING = Field(MISSING, description=_EVENT_TYPES)
    description: Annotated[str, VisibleText(500)] | None = Field(
        None, description="A note for yourself, at most 500 characters; null clears it."
    )


class EndpointResponse(Schema, json_schema_extra=example(_EXAMPLE_ENDPOINT)):
    """A webhook endpoint."""

    id: UUID = Field(description="Id of the endpoint.")
    url: str = Field(description="Address that events are sent to.", json_schema_extra={"format": "uri"})
    event_types: list[EventTypeFilter] = Field(description=_EVENT_TYPES)
    description: str | None = Field(description="A note of the owner; null: none.")
    status: EndpointStatus = Field(description="Whether events are sent.")
    disabled_reason: str | None = Field(
        description="Why the endpoint was disabled, as a machine-readable code; null: it is active."
    )
    disabled_at: datetime | None = Field(description="When the endpoint was disabled; null: it is active.")
    created_at: CreatedAt


class EndpointCreated(
    EndpointResponse,
    json_schema_extra=example(_EXAMPLE_ENDPOINT | {"secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="}),
):
    """A webhook endpoint with its secret, which no other answer contains."""

    secret: str = Field(description="Key of the signatures: `whsec_` and 32 bytes in base64.")


class EndpointList(Schema):
    """A page of webhook endpoints, oldest first."""

    items: list[EndpointResponse] = Field(description="Endpoints, oldest first.")
    next_cursor: NextCursor


class EventType(Schema):
    """A type of event that endpoints can ask for."""

    type: WebhookEventType = Field(description="Name of the type.")
    description: str = Field(description="When such an event is sent.")


class EventTypeList(Schema):
    """A page of the types of events."""

    items: list[EventType] = Field(description="Types, by name.")
    next_cursor: NextCursor


class DeliveryQuery(PageQuery):
    """Filters of the list of deliveries."""

    endpoint_id: Id | None = Field(None, description="Only deliveries to this endpoint.")
    state: DeliveryState | None = Field(None, description="Only deliveries in this state.")


class DeliveryResponse(Schema):
    """An event on its way to an endpoint."""

    id: UUID = Field(description="Id of the delivery.")
    endpoint_id: UUID = Field(description="The endpoint that it goes to.")
    message_id: UUID = Field(description="Id of the event, the `webhook-id` of every attempt.")
    event_type: str = Field(description="Type of the event; `webhook.test` for a test.")
    state: DeliveryState = Field(description="Whether the event has arrived.")
    attempts: int = Field(description="How often it was sent.")
    last_status: int | None = Field(description="HTTP status of the last attempt; null: there was no answer.")
    last_error: str | None = Field(
        description="Why the last attempt failed, as a machine-readable code; null: it did not fail. `backlog_full`: "
        "not attempted, because 5,000 of your deliveries were pending; the event can be redelivered. "
        "`endpoint_disabled`, `secret_unreadable`: not attempted, because the endpoint was disabled or deleted, or its "
        "secret cannot be read. `account_banned`: ended by a ban of your account. `cancelled`: its job was cancelled."
    )
    last_response: str | None = Field(description="Start of the last response body; null: there was none.")
    last_ms: int | None = Field(description="How long the last attempt took, in milliseconds; null: there was none.")
    next_at: datetime | None = Field(description="When the next attempt is made; null: there is none.")
    created_at: CreatedAt
    delivered_at: datetime | None = Field(description="When the endpoint answered 2xx; null: not yet.")


class DeliveryPage(Schema):
    """A page of deliveries, newest first."""

    items: list[DeliveryResponse] = Field(description="Deliveries, newest first.")
    next_cursor: NextCursor


class DeliveryAttemptResponse(Schema):
    """An attempt to send an event."""

    at: datetime = Field(description="When it ended.")
    status: int | None = Field(description="HTTP status of the answer; null: there was none.")
    ms: int = Field(description="How long it took, in milliseconds.")
    error: str | None = Field(description="Why it failed, as a machine-readable code; null: see `status`.")


class DeliveryDetailResponse(DeliveryResponse):
    """An event on its way to an endpoint, with what is sent and every attempt."""

    payload: dict[str, Any] = Field(description="The body of the request, as it is signed.")
    history: list[DeliveryAttemptResponse] = Field(
        description="The attempts, oldest first, those before a redelivery too; the newest 50."
    )


class AdminDeliveryResponse(DeliveryResponse):
    """An event on its way to an endpoint of any user."""

    user_id: UUID = Field(description="Owner of the endpoint.")


class AdminDeliveryPage(Schema):
    """A page of deliveries of all users, newest first."""

    items: list[AdminDeliveryResponse] = Field(description="Deliveries, newest first.")
    next_cursor: NextCursor


class AdminDeliveryQuery(DeliveryQuery):
    """Filters of the list of all users' deliveries."""

    user_id: Id | None = Field(None, description="Only deliveries of this user; needed with `endpoint_id`.")

    @model_validator(mode="after")
    def _names_the_owner(self) -> "AdminDeliveryQuery":
        if self.endpoint_id is not None and self.user_id is None:
            raise ValueError("name the endpoint's owner in `user_id`")
        return self


class RotateSecretRequest(Schema, json_schema_extra=example({"expire_old_now": True})):
    """How the old secret ends."""

    expire_old_now: bool = Field(
        default=False, description="Whether the old secret stops signing now, instead of in a day."
    )


class ReplayEndpointRequest(
    Schema,
    json_schema_extra=example({"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z", "state": "failed"}),
):
    """Which deliveries to send again: `since <= created_at < until`. Pending ones are under way."""

    since: Timestamp = Field(description="Deliveries from this time on.")
    until: Timestamp | None = Field(None, description="Deliveries before this time. Default: all until now.")
    state: FinishedDeliveryState | None = Field(None, description="Only deliveries in this state.")

    @model_validator(mode="after")
    def _has_a_span(self) -> "ReplayEndpointRequest":
        if self.until is not None and self.until <= self.since:
            raise ValueError("`until` must be later than `since`")
        return self
