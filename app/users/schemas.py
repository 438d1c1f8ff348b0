"""The module's requests and answers."""

from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Self

from pydantic import MISSING, AfterValidator, BeforeValidator, Field, HttpUrl, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError, ValidationError

from app.kernel.http import BodyLimits, Id, PageQuery, Schema, Timestamp, example
from app.users.records import (
    MAX_EVENTS_PER_REQUEST,
    MAX_EXTRA_BYTES,
    MAX_EXTRA_DEPTH,
    MAX_LOOKUP,
    MAX_PROPERTIES_BYTES,
    MAX_PROPERTIES_DEPTH,
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


_OBJECT = WithJsonSchema({"type": "object", "additionalProperties": True})

Bio = Annotated[str, Field(max_length=2_000)]
WebAddress = Annotated[
    str, Field(max_length=2_048, json_schema_extra={"format": "uri"}), AfterValidator(_check_web_address)
]
Kind = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.]{0,63}$")]
OccurredAt = Annotated[Timestamp, Field(ge=datetime(1970, 1, 1, tzinfo=UTC))]
# Checked as an object, carried as the JSON text that is stored.
Properties = Annotated[str, BeforeValidator(_check_properties), _OBJECT]
Extra = Annotated[str, BeforeValidator(_check_extra), _OBJECT]
# An `extra` as large as may be, with characters escaped and lines indented.
_WITH_EXTRA = BodyLimits(max_bytes=128 * 1024, max_values=10_000)
_EMPTY: Any = Field("{}", json_schema_extra={"default": {}})


class UserAnswer(Schema):
    """The own account."""

    id: Id
    email: str
    email_verified: bool
    display_name: str | None
    bio: str | None
    avatar_url: str | None
    locale: str
    timezone: str
    created_at: Timestamp
    updated_at: Timestamp


class UserPatch(Schema, json_schema_extra=example({"display_name": "Ada", "bio": None, "timezone": "Europe/London"})):
    """A JSON merge patch (RFC 7396): what is absent stays, null clears."""

    display_name: DisplayName | MISSING | None = MISSING
    bio: Bio | MISSING | None = MISSING
    avatar_url: WebAddress | MISSING | None = MISSING
    locale: Locale | MISSING = MISSING
    timezone: Timezone | MISSING = MISSING


class PublicUserAnswer(Schema):
    """What everybody may see of a user."""

    id: Id
    display_name: str | None
    bio: str | None
    avatar_url: str | None
    created_at: Timestamp


class LookupRequest(Schema, json_schema_extra=example({"ids": ["0198f000-0000-7000-8000-000000000000"]})):
    """Which users to look up."""

    ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_LOOKUP)]


class LookupAnswer(Schema):
    """The users there are, in the order asked for, and the ids of which there is none."""

    items: list[PublicUserAnswer]
    missing: list[Id]


class PreferencesAnswer(Schema):
    """The own preferences."""

    theme: Theme
    language: str
    email_notifications: bool
    weekly_report: bool
    extra: dict[str, Any]


class PreferencesPut(
    Schema, json_schema_extra=example({"theme": "dark", "language": "en-GB", "extra": {"density": "compact"}})
):
    """All preferences; what is absent takes its default."""

    body_limits: ClassVar = _WITH_EXTRA

    theme: Theme = "system"
    language: Locale = "en"
    email_notifications: bool = True
    weekly_report: bool = False
    extra: Extra = _EMPTY


class PreferencesPatch(Schema, json_schema_extra=example({"theme": "dark", "extra": {"density": None}})):
    """A JSON merge patch (RFC 7396); inside `extra`, null removes a member."""

    body_limits: ClassVar = _WITH_EXTRA

    theme: Theme | MISSING = MISSING
    language: Locale | MISSING = MISSING
    email_notifications: bool | MISSING = MISSING
    weekly_report: bool | MISSING = MISSING
    extra: dict[str, Any] | MISSING = MISSING


class EventRequest(Schema):
    """Something that happened; without `occurred_at`, now."""

    kind: Kind
    occurred_at: OccurredAt | None = None
    properties: Properties = _EMPTY

    def new_event(self, place: str) -> NewEvent:
        return NewEvent(self.kind, self.occurred_at, self.properties, place)


class EventsRequest(
    Schema,
    json_schema_extra=example(
        {"kind": "page.viewed", "occurred_at": "2026-01-31T12:00:00Z", "properties": {"path": "/pricing"}}
    )
    | {
        "oneOf": [
            {"required": ["kind"], "properties": {"events": False}},
            {"required": ["events"], "maxProperties": 1},
        ]
    },
):
    """One event, or `events` with up to 500 of them."""

    body_limits: ClassVar = BodyLimits(max_bytes=1024 * 1024, max_values=25_000)

    kind: Kind | MISSING = MISSING
    occurred_at: OccurredAt | MISSING | None = MISSING
    properties: Properties | MISSING = MISSING
    events: Annotated[list[EventRequest], Field(min_length=1, max_length=MAX_EVENTS_PER_REQUEST)] | MISSING = MISSING

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


class EventsAccepted(Schema):
    """The events are stored; `ids` are in the order of the request."""

    accepted: int
    ids: list[Id]


class EventAnswer(Schema):
    """A stored event."""

    id: Id
    kind: str
    occurred_at: Timestamp
    properties: dict[str, Any]
    created_at: Timestamp


class EventPage(Schema):
    """Events, the newest first."""

    items: list[EventAnswer]
    next_cursor: str | None


class EventQuery(PageQuery):
    """Filters of the list of events: `since <= occurred_at < until`."""

    kind: Kind | None = None
    since: OccurredAt | None = None
    until: OccurredAt | None = None


class SummaryQuery(Schema):
    """The width of the buckets, in UTC, and the period: by default 30 days of days, two days of hours."""

    bucket: Bucket = "day"
    since: OccurredAt | None = None
    until: OccurredAt | None = None


class EventCountAnswer(Schema):
    """How many events of one kind fell into the bucket that begins at `starts_at`."""

    starts_at: Timestamp
    kind: str
    count: int


class OtherEventCountAnswer(Schema):
    """How many events of kinds that are not listed fell into the bucket, and how many such kinds there are in it."""

    starts_at: Timestamp
    kinds: int
    count: int


class SummaryAnswer(Schema):
    """Counts per bucket and kind; empty buckets are left out.

    Of very many kinds the most frequent ones of the period are listed, about 10,000 counts in all, and `others` has the
    sums of the rest.
    """

    bucket: Bucket
    since: Timestamp
    until: Timestamp
    items: list[EventCountAnswer]
    others: list[OtherEventCountAnswer] | MISSING = MISSING
