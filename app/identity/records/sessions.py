"""Sessions, from their beginning to their end."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from app.identity.records import AccountStatus, Device
from app.kernel.auth import Role
from app.kernel.ids import UserId


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session about to be stored."""

    user_id: UserId
    id: UUID
    created_at: datetime
    idle_expires_at: datetime
    expires_at: datetime
    methods: tuple[str, ...]
    device: Device


@dataclass(frozen=True, slots=True)
class Session:
    """A session as its owner sees it."""

    id: UUID
    created_at: datetime
    last_used_at: datetime
    ip: str | None
    user_agent: str | None
    device_name: str | None
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """When and how the user of a session logged in (RFC 8176 names), and when it ends unless it is used."""

    authenticated_at: datetime
    methods: list[str]
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class SessionsEnd:
    """The end of one session, or of all but `except_id`. `is_noted`: with an audit entry of `reason`.

    `live_session_id`: nothing happens if this session of the actor has ended before.
    """

    user_id: UserId
    event_id: UUID
    session_id: UUID | None
    except_id: UUID | None
    now: datetime
    reason: str
    revocations_end: datetime
    actor_id: UUID | None
    live_session_id: UUID | None
    device: Device
    is_noted: bool


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """What the log-in statement did: whether the session was opened, and which others ended because the account may
    have so many only. `is_crowded`: another log-in of the account came in between, so that there may be more.
    """

    is_opened: bool
    ended: list[UUID]
    is_crowded: bool


@dataclass(frozen=True, slots=True)
class Rotation:
    """A session just after, or at, one of its rotations, with what the next access token says."""

    generation: int
    rotated_at: datetime
    rotation_key: bytes | None
    idle_expires_at: datetime
    alive: bool
    status: AccountStatus
    role: Role
    version: int


@dataclass(frozen=True, slots=True)
class SessionOwner:
    """What a request with a session cookie needs to know."""

    expires_at: datetime
    role: Role
    version: int


def session_end(now: datetime, idle_ttl: int, absolute_end: datetime) -> datetime:
    """When a session used `now` ends if it is not used again."""
    return min(now + timedelta(seconds=idle_ttl), absolute_end)
