"""The module's requests and answers."""

from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    MISSING,
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    HttpUrl,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, ValidationError

from app.kernel.http import (
    EXAMPLE_ID,
    EXAMPLE_TIME,
    BodyLimits,
    CreatedAt,
    EmailText,
    Id,
    NextCursor,
    PageQuery,
    Schema,
    Timestamp,
    example,
)
from app.users.records import (
    MAX_EVENTS_PER_REQUEST,
    MAX_EXTRA_BYTES,
    MAX_EXTRA_DEPTH,
    MAX_LOOKUP,
    MAX_PROPERTIES_BYTES,
    MAX_PROPERTIES_DEPTH,
    MAX_PROPERTY_FILTERS,
    MAX_PROPERTY_VALUE,
    Bucket,
    DisplayName,
    Locale,
    NewEvent,
    Theme,
    Timezone,
    json_object,
)


def _check_web_address(value: str) -> str:
    wrong = PydanticCustomError("invalid_url", "Not an address that begins with http or https.")
    # Parsers of addresses take line breaks and tabs out of them without a word.
    if not value.isprintable():
        raise wrong
    try:
        HttpUrl(value)
    except ValidationError as error:
        raise wrong from error
    return value


def _check_properties(value: Any) -> str:
    return json_object(value, max_bytes=MAX_PROPERTIES_BYTES, max_depth=MAX_PROPERTIES_DEPTH)


def _check_extra(value: Any) -> str:
    return json_object(value, max_bytes=MAX_EXTRA_BYTES, max_depth=MAX_EXTRA_DEPTH)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OBJECT = WithJsonSchema({"type": "object", "additionalProperties": True})

Bio = Annotated[str, Field(max_length=2_000)]
WebAddress = Annotated[
    str, Field(max_length=2_048, json_schema_extra={"format": "uri"}), AfterValidator(_check_web_address)
]
Kind = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.]{0,63}$")]


def _check_epoch(value: datetime) -> datetime:
    if value < _EPOCH:
        raise PydanticCustomError("too_small", "Before 1970.")
    return value


# JSON Schema has no keyword for the smallest time, so the description names it.
OccurredAt = Annotated[Timestamp, AfterValidator(_check_epoch)]
# Checked as an object, carried as the JSON text that is stored.
Properties = Annotated[str, BeforeValidator(_check_properties), _OBJECT]
Extra = Annotated[str, BeforeValidator(_check_extra), _OBJECT]
# An `extra` as large as may be, with characters escaped and lines indented.
_WITH_EXTRA = BodyLimits(max_bytes=128 * 1024, max_values=10_000)
EXAMPLE_USER = {
    "id": EXAMPLE_ID,
    "email": "ada@example.com",
    "email_verified": True,
    "display_name": "Ada",
    "bio": None,
    "avatar_url": None,
    "locale": "en",
    "timezone": "Europe/London",
    "created_at": EXAMPLE_TIME,
    "updated_at": EXAMPLE_TIME,
}
EXAMPLE_PREFERENCES = {
    "theme": "dark",
    "language": "en-GB",
    "email_notifications": True,
    "weekly_report": False,
    "extra": {"density": "compact"},
}
EXAMPLE_EVENT = {
    "id": EXAMPLE_ID,
    "kind": "page.viewed",
    "occurred_at": EXAMPLE_TIME,
    "properties": {"path": "/pricing"},
    "created_at": EXAMPLE_TIME,
}
_ONE_EVENT = {"kind": "page.viewed", "occurred_at": "2026-01-31T12:00:00Z", "properties": {"path": "/pricing"}}
_KINDS = "Lower-case letters, digits, `_` and `.`, at most 64, for instance `page.viewed`."
_OCCURRED_AT = "When it happened: from 1970 on, and at most an hour in the future. Default: now."
_PROPERTIES = "Anything else about it: an object of at most 8 KiB as JSON, nested at most 8 levels deep."
_EXTRA = "What clients keep for themselves: an object of at most 16 KiB as JSON, nested at most 32 levels deep."


class UserResponse(Schema, json_schema_extra=example(EXAMPLE_USER)):
    """Your account and profile."""

    id: Id = Field(description="Id of the user.")
    email: EmailText = Field(description="The address that the account logs in with.")
    email_verified: bool = Field(description="Whether the user has opened a link sent to the address.")
    display_name: str | None = Field(description="Name that other users see; null: none.")
    bio: str | None = Field(description="Text about the user; null: none.")
    avatar_url: str | None = Field(description="Address of a picture; null: none.")
    locale: str = Field(description="Language tag (BCP 47) for texts and e-mail.")
    timezone: str = Field(description="Time zone of the IANA database.")
    created_at: CreatedAt
    updated_at: Timestamp = Field(description="When the account or profile was last changed.")


class PatchUserRequest(
    Schema, json_schema_extra=example({"display_name": "Ada", "bio": None, "timezone": "Europe/London"})
):
    """A JSON merge patch (RFC 7396): an absent member stays, null clears."""

    display_name: DisplayName | MISSING | None = Field(MISSING, description="Name that other users see.")
    bio: Bio | MISSING | None = Field(MISSING, description="Text about the user, at most 2,000 characters.")
    avatar_url: WebAddress | MISSING | None = Field(MISSING, description="Address of a picture, by http or https.")
    locale: Locale | MISSING = Field(MISSING, description="Language tag (BCP 47), for instance `pt-BR`.")
    timezone: Timezone | MISSING = Field(MISSING, description="Time zone of the IANA database.")


class PublicUserResponse(Schema):
    """The part of a user that every other user may read."""

    id: Id = Field(description="Id of the user.")
    display_name: str | None = Field(description="Name of the user; null: none.")
    bio: str | None = Field(description="Text about the user; null: none.")
    avatar_url: str | None = Field(description="Address of a picture; null: none.")
    created_at: CreatedAt


class LookupRequest(Schema, json_schema_extra=example({"ids": [EXAMPLE_ID]})):
    """Ids of the users to look up."""

    ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_LOOKUP)] = Field(
        description=f"1 to {MAX_LOOKUP} ids of users."
    )


class LookupResponse(Schema):
    """The users that were found, and the ids of the others."""

    items: list[PublicUserResponse] = Field(description="Users that exist, in the order of the request.")
    missing: list[Id] = Field(description="Ids that no user has.")


class PreferencesResponse(Schema, json_schema_extra=example(EXAMPLE_PREFERENCES)):
    """Your preferences."""

    theme: Theme = Field(description="Colours of user interfaces.")
    language: str = Field(description="Language tag (BCP 47) of user interfaces.")
    email_notifications: bool = Field(description="Whether e-mail may be sent that is not about the account itself.")
    weekly_report: bool = Field(description="Whether a report is sent each Monday.")
    extra: dict[str, Any] = Field(description=_EXTRA)


class PutPreferencesRequest(
    Schema, json_schema_extra=example({"theme": "dark", "language": "en-GB", "extra": {"density": "compact"}})
):
    """All preferences; an absent one takes its default."""

    body_limits: ClassVar = _WITH_EXTRA

    theme: Theme = Field("system", description="Colours of user interfaces.")
    language: Locale = Field("en", description="Language tag (BCP 47) of user interfaces.")
    email_notifications: bool = Field(
        default=True, description="Whether e-mail may be sent that is not about the account itself."
    )
    weekly_report: bool = Field(default=False, description="Whether to send a report each Monday.")
    extra: Extra = Field("{}", description=_EXTRA, json_schema_extra={"default": {}})


class PatchPreferencesRequest(Schema, json_schema_extra=example({"theme": "dark", "extra": {"density": None}})):
    """A JSON merge patch (RFC 7396); inside `extra`, null removes a member."""

    body_limits: ClassVar = _WITH_EXTRA

    theme: Theme | MISSING = Field(MISSING, description="Colours of user interfaces.")
    language: Locale | MISSING = Field(MISSING, description="Language tag (BCP 47) of user interfaces.")
    email_notifications: bool | MISSING = Field(
        MISSING, description="Whether e-mail may be sent that is not about the account itself."
    )
    weekly_report: bool | MISSING = Field(MISSING, description="Whether to send a report each Monday.")
    extra: dict[str, Any] | MISSING = Field(MISSING, description=f"A merge patch of `extra`. {_EXTRA}")


class EventRequest(Schema, json_schema_extra=example(_ONE_EVENT)):
    """An event to store."""

    kind: Kind = Field(description=_KINDS)
    occurred_at: OccurredAt | None = Field(None, description=_OCCURRED_AT)
    properties: Properties = Field("{}", description=_PROPERTIES, json_schema_extra={"default": {}})

    def new_event(self, place: str) -> NewEvent:
        return NewEvent(self.kind, self.occurred_at, self.properties, place)


class EventBatchRequest(Schema, json_schema_extra=example({"events": [_ONE_EVENT]})):
    """Several events to store; all of them are stored, or none."""

    events: Annotated[list[EventRequest], Field(min_length=1, max_length=MAX_EVENTS_PER_REQUEST)] = Field(
        description=f"1 to {MAX_EVENTS_PER_REQUEST} events, in a body of at most 1 MiB."
    )


class EventsRequest(Schema, json_schema_extra=example(_ONE_EVENT)):
    """One event, or `events` with up to 500 of them.

    The two forms are one model, because the error of a union would name both where a client meant one. The document has
    the two as schemas of their own.
    """

    body_limits: ClassVar = BodyLimits(max_bytes=1024 * 1024, max_values=25_000)

    kind: Kind | MISSING = MISSING
    occurred_at: OccurredAt | MISSING | None = MISSING
    properties: Properties | MISSING = MISSING
    events: Annotated[list[EventRequest], Field(min_length=1, max_length=MAX_EVENTS_PER_REQUEST)] | MISSING = MISSING

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {
            "title": cls.__name__,
            "oneOf": handler(_EVENT_FORMS.core_schema)["anyOf"],
            "description": f"One event, or `events` with up to {MAX_EVENTS_PER_REQUEST} of them.",
            **example(_ONE_EVENT),
        }

    def new_events(self) -> list[NewEvent]:
        """The events in either form."""
        if self.events is MISSING:
            kind: Any = self.kind
            occurred_at: Any = None if self.occurred_at is MISSING else self.occurred_at
            properties: Any = "{}" if self.properties is MISSING else self.properties
            return [NewEvent(kind, occurred_at, properties, "#")]
        return [event.new_event(f"#/events/{index}") for index, event in enumerate(self.events)]

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        if self.events is MISSING:
            if self.kind is MISSING:
                raise PydanticCustomError("missing", "Either `kind` or `events` is required.")
        elif self.model_fields_set != {"events"}:
            raise PydanticCustomError("ambiguous", "Beside `events` there can be no other field.")
        return self


_EVENT_FORMS = TypeAdapter[Any](EventRequest | EventBatchRequest)


class EventsAccepted(Schema, json_schema_extra=example({"accepted": 1, "ids": [EXAMPLE_ID]})):
    """The events are stored."""

    accepted: int = Field(description="How many events were stored.")
    ids: list[Id] = Field(description="Ids of the events, in the order of the request.")


class EventResponse(Schema, json_schema_extra=example(EXAMPLE_EVENT)):
    """A stored event."""

    id: Id = Field(description="Id of the event; ids grow with the time of storing.")
    kind: str = Field(description="Kind of the event.")
    occurred_at: Timestamp = Field(description="When it happened, by the client's clock.")
    properties: dict[str, Any] = Field(description="Anything else about it.")
    created_at: Timestamp = Field(description="When it was stored.")


class EventPage(Schema, json_schema_extra=example({"items": [EXAMPLE_EVENT], "next_cursor": None})):
    """A page of events, newest first."""

    items: list[EventResponse] = Field(description="Events, newest first.")
    next_cursor: NextCursor


class EventQuery(PageQuery):
    """Filters of the list of events: `since <= occurred_at < until`, and `property.<name>=<value>` for any property."""

    model_config = ConfigDict(extra="allow", frozen=True)
    open_prefix: ClassVar[str | None] = "property."

    kind: Kind | None = Field(None, description="Only events of this kind.")
    since: OccurredAt | None = Field(None, description="Only events from this time on, which must not lie before 1970.")
    until: OccurredAt | None = Field(None, description="Only events before this time.")

    @model_validator(mode="after")
    def _few_properties(self) -> "EventQuery":
        wanted = self.properties()
        if len(wanted) > MAX_PROPERTY_FILTERS or any(len(value) > MAX_PROPERTY_VALUE for _, value in wanted):
            raise PydanticCustomError(
                "too_large",
                "At most {count} properties, each with a value of at most {length} characters.",
                {"count": MAX_PROPERTY_FILTERS, "length": MAX_PROPERTY_VALUE},
            )
        return self

    def properties(self) -> tuple[tuple[str, str], ...]:
        """The names and values of the properties that are asked for."""
        extra = self.model_extra or {}
        return tuple(sorted((name.removeprefix("property."), str(value)) for name, value in extra.items()))


class SummaryQuery(Schema):
    """The width of the buckets, in UTC, and the period: by default 30 days of days, two days of hours."""

    bucket: Bucket = Field("day", description="Width of the buckets, in UTC.")
    since: OccurredAt | None = Field(
        None, description="Start of the period. Default: 30 days before `until`, or two days by the hour."
    )
    until: OccurredAt | None = Field(
        None,
        description="End of the period, at most 366 days after `since`, or 31 days by the hour. Default: now.",
    )


class EventCountResponse(Schema):
    """Events of one kind in one bucket."""

    starts_at: Timestamp = Field(description="Start of the bucket.")
    kind: str = Field(description="Kind of the events.")
    count: int = Field(description="How many events there were.")


class OtherEventCountResponse(Schema):
    """Events of the kinds that are not listed, in one bucket."""

    starts_at: Timestamp = Field(description="Start of the bucket.")
    kinds: int = Field(description="How many kinds the sum covers.")
    count: int = Field(description="How many events there were.")


class SummaryResponse(
    Schema,
    json_schema_extra=example(
        {
            "bucket": "day",
            "since": "2026-01-01T00:00:00Z",
            "until": "2026-01-31T12:00:00Z",
            "items": [{"starts_at": "2026-01-31T00:00:00Z", "kind": "page.viewed", "count": 3}],
        }
    ),
):
    """Counts per bucket and kind; empty buckets are left out.

    Of very many kinds the most frequent ones of the period are listed, about 10,000 counts in all, and `others` has the
    sums of the rest.
    """

    bucket: Bucket = Field(description="Width of the buckets, in UTC.")
    since: Timestamp = Field(description="Start of the period.")
    until: Timestamp = Field(description="End of the period, which it does not include.")
    items: list[EventCountResponse] = Field(description="Counts by bucket, then by kind.")
    others: list[OtherEventCountResponse] | MISSING = Field(
        MISSING, description="Sums of the kinds that are not listed; absent if all are."
    )
