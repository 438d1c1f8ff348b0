"""What other modules may use of the users module."""

from app.users.queries.events import get_event_total as count_events
from app.users.queries.events import iterate_events, stream_events
from app.users.queries.overview import list_overviews
from app.users.queries.preferences import list_weekly_reporters
from app.users.queries.profiles import get_user
from app.users.records import (
    DisplayName,
    Event,
    EventBatch,
    EventSummary,
    Locale,
    NewEvent,
    OverviewPart,
    Preferences,
    RetentionPosition,
    Timezone,
    User,
    UserExport,
)
from app.users.schemas import (
    EXAMPLE_EVENT,
    EXAMPLE_PREFERENCES,
    EXAMPLE_USER,
    EventResponse,
    PreferencesResponse,
    UserResponse,
)
from app.users.service import (
    anonymise_user,
    create_user,
    delete_events,
    end_weekly_report,
    event_group_commit,
    events_tag,
    export_user,
    hide_user,
    profile_tag,
    record_events,
    set_email,
    summarise_events,
)
from app.users.service.retention import expire_events
from app.users.service.streaming import EventWatch
from app.users.settings import UsersSettings

__all__ = [
    "EXAMPLE_EVENT",
    "EXAMPLE_PREFERENCES",
    "EXAMPLE_USER",
    "DisplayName",
    "Event",
    "EventBatch",
    "EventResponse",
    "EventSummary",
    "EventWatch",
    "Locale",
    "NewEvent",
    "OverviewPart",
    "Preferences",
    "PreferencesResponse",
    "RetentionPosition",
    "Timezone",
    "User",
    "UserExport",
    "UserResponse",
    "UsersSettings",
    "anonymise_user",
    "count_events",
    "create_user",
    "delete_events",
    "end_weekly_report",
    "event_group_commit",
    "events_tag",
    "expire_events",
    "export_user",
    "get_user",
    "hide_user",
    "iterate_events",
    "list_overviews",
    "list_weekly_reporters",
    "profile_tag",
    "record_events",
    "set_email",
    "stream_events",
    "summarise_events",
]
