"""What the module's tables hold, and the pure rules about it."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from app.kernel.auth import SCOPES_OF_ROLE, Role
from app.kernel.ids import UserId
from app.users.api import User

AccountStatus = Literal["active", "banned", "deleted"]
SigningKeyState = Literal["next", "active", "retired"]
RevocationKind = Literal["session", "account", "api_key"]


@dataclass(frozen=True, slots=True)
class Account:
    """What log-in and the issue of tokens need of an account. `version` counts what makes older tokens stale."""

    user_id: UserId
    email: str
    email_verified_at: datetime | None
    password_hash: str | None
    status: AccountStatus
    role: Role
    version: int
    totp_enabled: bool

    @property
    def roles(self) -> tuple[str, ...]:
        return ("user",) if self.role == "user" else ("user", "admin")

    @property
    def scopes(self) -> frozenset[str]:
        return SCOPES_OF_ROLE[self.role]


@dataclass(frozen=True, slots=True)
class Device:
    """Where a session is used from, as far as the request tells."""

    ip: str | None
    user_agent: str | None
    name: str | None = None


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
class Rotation:
    """A session just after, or at, one of its rotations, with what the next access token says."""

    generation: int
    rotated_at: datetime
    rotation_key: bytes | None
    alive: bool
    status: AccountStatus
    role: Role
    version: int
    now: datetime


@dataclass(frozen=True, slots=True)
class Revocation:
    """Tokens that are refused although their signature is good.

    `session` and `api_key`: all of that one. `account`: those with a `ver` below `version`.
    """

    kind: RevocationKind
    subject: UUID
    version: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class SigningKeyRow:
    """One Ed25519 key; `private_sealed` opens with the key that `key_id` names."""

    kid: str
    algorithm: str
    private_sealed: bytes
    key_id: str
    public_key: bytes
    state: SigningKeyState


@dataclass(frozen=True, slots=True)
class Tokens:
    """An answer of the token endpoints (RFC 6749, section 5.1)."""

    access_token: str
    refresh_token: str
    expires_in: int
    scope: str

    def view(self) -> dict[str, object]:
        return {
            "access_token": self.access_token,
            "token_type": "Bearer",
            "expires_in": self.expires_in,
            "refresh_token": self.refresh_token,
            "scope": self.scope,
        }


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Somebody who has just proven who they are."""

    user: User
    tokens: Tokens

    def view(self) -> dict[str, object]:
        return {"user": self.user.view(), "tokens": self.tokens.view()}


@dataclass(frozen=True, slots=True)
class SecurityEvent:
    """One entry of an account's audit trail. `data` is JSON text."""

    id: UUID
    action: str
    actor_id: UUID | None
    session_id: UUID | None
    ip: str | None
    user_agent: str | None
    data: str
    created_at: datetime


def canonical_email(email: str) -> str:
    """The form in which addresses are compared: case does not make another mailbox."""
    return email.strip().casefold()


def session_end(now: datetime, idle_ttl: int, absolute_end: datetime) -> datetime:
    """When a session used `now` ends if it is not used again."""
    return min(now + timedelta(seconds=idle_ttl), absolute_end)
