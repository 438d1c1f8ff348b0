"""What the module's tables hold, and the pure rules about it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID
from zoneinfo import available_timezones

import orjson
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from typing_extensions import TypeAliasType

from app.kernel.ids import UserId
from app.kernel.validation.text import VisibleLine

MAX_EXTRA_BYTES = 16 * 1024
MAX_PROPERTIES_BYTES = 8 * 1024
MAX_PROPERTIES_DEPTH = 8
MAX_EVENTS_PER_REQUEST = 500
MAX_LOOKUP = 100
# Counts in a summary. Kinds are of the caller's choice, and without a bound so would be the answer.
MAX_SUMMARY_ITEMS = 10_000
MIN_SUMMARY_KINDS = 10
# A request for a summary reads the events that were stored since its period began: a million take PostgreSQL one to two
# seconds. A report reads more.
MAX_SUMMARY_EVENTS = 1_000_000

MAX_EXTRA_DEPTH = 32

# Clocks of devices run ahead; an event further in the future than this is a mistake. The queries rely on it
# being less than a day.
CLOCK_SKEW = timedelta(hours=1)

Bucket = TypeAliasType("Bucket", Literal["day", "hour"])
Theme = TypeAliasType("Theme", Literal["system", "light", "dark"])

# The default and the longest period of a summary, by the width of its buckets.
DEFAULT_PERIODS: dict[Bucket, timedelta] = {"day": timedelta(days=30), "hour": timedelta(days=2)}
LONGEST_PERIODS: dict[Bucket, timedelta] = {"day": timedelta(days=366), "hour": timedelta(days=31)}

BUCKET_WIDTHS: dict[Bucket, timedelta] = {"day": timedelta(days=1), "hour": timedelta(hours=1)}

# JSON that Postgres made goes into answers as it is, without being read on the way.
RawJson = orjson.Fragment

# As orjson writes numbers; the second one passes over texts that look like them.
_EXPONENT = re.compile(rb"\de[+-]")
_STRING_OR_EXPONENT = re.compile(rb'"(?:[^"\\]|\\.)*"|e[+-]?(\d+)')

# BCP 47 as far as people use it: language, script, region, variants.
_LOCALE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z]{4})?(-([A-Za-z]{2}|\d{3}))?(-[A-Za-z0-9]{5,8})*", re.ASCII)
# `localtime` is whatever the machine is set to, and `Factory` says that it has not been set.
_TIMEZONES = frozenset(available_timezones()) - {"Factory", "localtime"}


def _check_locale(value: str) -> str:
    if not _LOCALE.fullmatch(value):
        raise PydanticCustomError("invalid_locale", "Not a language tag such as en or pt-BR.")
    return value


def _check_timezone(value: str) -> str:
    if value not in _TIMEZONES:
        raise PydanticCustomError("invalid_timezone", "Not a time zone such as Europe/Berlin.")
    return value


DisplayName = Annotated[str, VisibleLine(100)]
Locale = Annotated[
    str, Field(max_length=35, json_schema_extra={"pattern": f"^{_LOCALE.pattern}$"}), AfterValidator(_check_locale)
]
Timezone = Annotated[
    str, Field(max_length=64, json_schema_extra={"format": "timezone"}), AfterValidator(_check_timezone)
]


@dataclass(frozen=True, slots=True)
class User:
    """The account as its owner sees it. `version` is the source of the entity tag."""

    id: UserId
    email: str
    email_verified: bool
    display_name: str | None
    bio: str | None
    avatar_url: str | None
    locale: str
    timezone: str
    created_at: datetime
    updated_at: datetime
    version: int

    def view(self) -> dict[str, Any]:
        """The answer of `GET /v1/users/me`."""
        return {
            "id": self.id,
            "email": self.email,
            "email_verified": self.email_verified,
            "display_name": self.display_name,
            "bio": self.bio,
            "avatar_url": self.avatar_url,
            "locale": self.locale,
            "timezone": self.timezone,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
        }


@dataclass(frozen=True, slots=True)
class PublicUser:
    """What others see of a user."""

    id: UserId
    display_name: str | None
    bio: str | None
    avatar_url: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Preferences:
    """Choices of a user. `extra` is the JSON text of an object whose content belongs to the clients."""

    theme: Theme
    language: str
    email_notifications: bool
    weekly_report: bool
    extra: str
    version: int

    def view(self) -> dict[str, Any]:
        """The answer of `GET /v1/users/me/preferences`."""
        return {
            "theme": self.theme,
            "language": self.language,
            "email_notifications": self.email_notifications,
            "weekly_report": self.weekly_report,
            "extra": RawJson(self.extra),
        }


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a user did: `occurred_at` by the client's clock, stored at `created_at` by ours."""

    id: UUID
    kind: str
    occurred_at: datetime
    properties: RawJson
    created_at: datetime


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to be stored; without `occurred_at` it happens now. `place` points at it in the request."""

    kind: str
    occurred_at: datetime | None
    properties: str
    place: str = "#"


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events of one user about to be stored under `ids`."""

    user_id: UserId
    ids: list[UUID]
    events: Sequence[NewEvent]


@dataclass(frozen=True, slots=True)
class EventSummary:
    """Counts by bucket, then by kind, of a period; empty buckets are left out.

    `items` is a JSON array of `{starts_at, kind, count}` for the most frequent kinds, at most `MAX_SUMMARY_ITEMS`
    counts or ten kinds; `others` is one of `{starts_at, kinds, count}`: what the buckets hold beside them, of how many
    kinds. `events_read` were looked at for it.
    """

    bucket: Bucket
    since: datetime
    until: datetime
    items: str
    others: str
    events_read: int


# Of one list.
MAX_PROPERTY_FILTERS = 10
MAX_PROPERTY_VALUE = 256


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events of a user: of one kind, with `since <= occurred_at < until`, and with these values, as text, of
    properties.
    """

    kind: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    properties: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class OverviewPart:
    """What the composed front shows of a user, as JSON: the user, the preferences, the ten newest events."""

    user: str
    preferences: str
    recent_events: str


@dataclass(frozen=True, slots=True)
class UserExport:
    """The profile and the preferences for a copy of all data of a user."""

    user: User
    preferences: Preferences


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """How far a stream of events has come: behind this event of this transaction, stored at this time.

    `id` is zero before the first event of the transaction.
    """

    created_at: datetime
    xid: str
    id: UUID

    def mark(self) -> UUID:
        """The `id` of a stream that has come this far: the event's, or a UUIDv8 of the time and the transaction."""
        if self.id.int:
            return self.id
        milliseconds = int(self.created_at.timestamp() * 1000)
        return UUID(int=milliseconds << 80 | 8 << 76 | 2 << 62 | int(self.xid))


@dataclass(frozen=True, slots=True)
class StreamedEvent:
    """An event with the transaction that has stored it; `properties` is JSON text.

    `is_settled`: all transactions before its own have ended, so that no event can come before it any more.
    """

    id: UUID
    kind: str
    occurred_at: datetime
    properties: str
    created_at: datetime
    xid: str
    is_settled: bool

    def position(self) -> StreamPosition:
        return StreamPosition(self.created_at, self.xid, self.id)


@dataclass(frozen=True, slots=True)
class RetentionPosition:
    """How far the users have been searched for old events, by their ids: behind this event of this user, newest first.

    Without an event: behind all events of the user.
    """

    user_id: UUID
    created_at: datetime | None = None
    id: UUID | None = None

    @classmethod
    def behind(cls, last_user_done: UUID | None) -> "RetentionPosition":
        """At the first event of the next user; None: of the first one."""
        return cls(last_user_done or UUID(int=0))

    @property
    def last_user_done(self) -> UUID:
        """The highest id that may be one of a user all of whose events have been searched."""
        return self.user_id if self.created_at is None else UUID(int=self.user_id.int - 1)


def merge_patch(target: Any, patch: Any) -> Any:
    """`target` after a JSON merge patch (RFC 7396, section 2); both are left as they are."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def json_object(value: Any, *, max_bytes: int, max_depth: int) -> str:
    """The JSON text of an object; `max_depth` counts nested objects and arrays, the outermost included.

    Its size is that with every number written out, as Postgres keeps it: 1e308 has 309 digits there, and in answers.

    Raises:
        PydanticCustomError: it is no object, too deep, too large, or holds an integer beyond 64 bits.
    """
    if not isinstance(value, dict):
        raise PydanticCustomError("wrong_type", "Not an object.")
    if not _is_within_depth(value, max_depth):
        raise PydanticCustomError("too_deep", "Nested more than {limit} levels deep.", {"limit": max_depth})
    try:
        text = orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise PydanticCustomError("number_too_large", "An integer does not fit into 64 bits.") from error
    if _size_written_out(text) > max_bytes:
        raise PydanticCustomError("too_large", "More than {limit} bytes as JSON.", {"limit": max_bytes})
    return text.decode()


def _size_written_out(text: bytes) -> int:
    if not _EXPONENT.search(text):
        return len(text)
    return len(text) + sum(int(exponent) for exponent in _STRING_OR_EXPONENT.findall(text) if exponent)


def _is_within_depth(value: Any, levels: int) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return True
    if levels == 0:
        return False
    inner = [item for item in value if isinstance(item, (dict, list))]
    return all(_is_within_depth(item, levels - 1) for item in inner) if inner else True
