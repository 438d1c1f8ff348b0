"""What other modules may use of the users module."""

from app.users.queries import get_event_total as count_events
from app.users.queries import get_user, stream_events
from app.users.records import (
    DisplayName,
    Event,
    EventCount,
    EventSummary,
    Locale,
    NewEvent,
    OverviewPart,
    Preferences,
    Timezone,
    User,
    UserExport,
)
from app.users.service import (
    anonymise_user,
    create_user,
    delete_events,
    events_tag,
    export_user,
    hide_user,
    profile_tag,
    read_overview,
    record_events,
    set_email,
    summarise_events,
)

__all__ = [
    "DisplayName",
    "Event",
    "EventCount",
    "EventSummary",
    "Locale",
    "NewEvent",
    "OverviewPart",
    "Preferences",
    "Timezone",
    "User",
    "UserExport",
    "anonymise_user",
    "count_events",
    "create_user",
    "delete_events",
    "events_tag",
    "export_user",
    "get_user",
    "hide_user",
    "profile_tag",
    "read_overview",
    "record_events",
    "set_email",
    "stream_events",
    "summarise_events",
]
