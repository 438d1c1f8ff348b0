"""What the module's tables hold, and the pure rules about it."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

import orjson
from typing_extensions import TypeAliasType

from app.kernel.auth import Role
from app.kernel.ids import UserId
from app.users.api import User

AccountStatus = TypeAliasType("AccountStatus", Literal["active", "banned", "deleted"])
SigningKeyState = Literal["next", "active", "retired"]
TokenPurpose = Literal["verify_email", "reset_password", "change_email", "log_in"]
SecondFactorMethod = TypeAliasType("SecondFactorMethod", Literal["totp", "recovery_code", "passkey"])
RevocationKind = Literal["session", "account", "api_key"]


@dataclass(frozen=True, slots=True)
class Account:
    """What log-in and the issue of tokens need of an account. `version` counts what makes older tokens stale,
    `factor_epoch` how often the second factor was turned on or off, from 1.
    """

    user_id: UserId
    email: str
    email_verified_at: datetime | None
    password_hash: str | None
    status: AccountStatus
    role: Role
    version: int
    totp_enabled: bool
    factor_epoch: int


@dataclass(frozen=True, slots=True)
class MailAccount:
    """What decides whether mail may be sent in the name of an account, or about it."""

    is_active: bool
    is_verified: bool
    email_canonical: str


@dataclass(frozen=True, slots=True)
class Device:
    """Where a session is used from, as far as the request tells."""

    ip: str | None
    user_agent: str | None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Actor:
    """The caller of a request that does something: which account, by which session or API key, from where."""

    user_id: UserId
    session_id: UUID | None
    device: Device
    api_key_id: UUID | None = None
    is_operator: bool = False
    # The administrator that acts for the user.
    impersonator_id: UserId | None = None

    @property
    def acting_id(self) -> UserId:
        """The account whose act it is, which the audit trail names."""
        return self.impersonator_id or self.user_id


# No account has it: ids are made by `new_id`.
OPERATOR_ID = UserId(UUID(int=0))


def operator(name: str) -> Actor:
    """Someone with access to the machine, at the command line. `name` stands in place of a user agent."""
    return Actor(OPERATOR_ID, None, Device(None, name), is_operator=True)


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
    """An answer of the token endpoints (RFC 6749, section 5.1). `session_seconds`: until the session ends unless it is
    used.
    """

    access_token: str
    refresh_token: str
    expires_in: int
    scope: str
    session_seconds: int

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
    """An account that has just been proven to be the caller's."""

    user: User
    tokens: Tokens

    def view(self) -> dict[str, object]:
        return {"user": self.user.view(), "tokens": self.tokens.view()}


@dataclass(frozen=True, slots=True)
class AdminAccount:
    """An account as administrators see it."""

    user_id: UserId
    email: str
    email_verified_at: datetime | None
    status: AccountStatus
    role: Role
    totp_enabled: bool
    banned_at: datetime | None
    ban_reason: str | None
    last_login_at: datetime | None
    created_at: datetime
    deleted_at: datetime | None
    purge_at: datetime | None

    def view(self) -> dict[str, object]:
        return {
            "id": self.user_id,
            "email": self.email,
            "email_verified": self.email_verified_at is not None,
            "status": self.status,
            "role": self.role,
            "totp_enabled": self.totp_enabled,
            "banned_at": self.banned_at,
            "ban_reason": self.ban_reason,
            "last_login_at": self.last_login_at,
            "created_at": self.created_at,
            "deleted_at": self.deleted_at,
            "purge_at": self.purge_at,
        }


@dataclass(frozen=True, slots=True)
class OneTimeToken:
    """A token that has just been used, with its account, which is locked. `payload` is JSON text."""

    user_id: UserId
    email: str
    email_verified_at: datetime | None
    role: Role
    version: int
    payload: str


@dataclass(frozen=True, slots=True)
class ApiKeyRow:
    """An API key as its owner sees it; the key itself is not kept."""

    id: UUID
    name: str
    scopes: list[str]
    expires_at: datetime | None
    last_used_at: datetime | None
    created_at: datetime

    def view(self) -> dict[str, object]:
        return {
            "id": self.id,
            "name": self.name,
            "scopes": self.scopes,
            "expires_at": self.expires_at,
            "last_used_at": self.last_used_at,
            "created_at": self.created_at,
        }


@dataclass(frozen=True, slots=True)
class ApiKeyOwner:
    """What a request with an API key needs to know."""

    scopes: list[str]
    expires_at: datetime | None
    role: Role
    version: int


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """The account of a program, as administrators see it."""

    user_id: UserId
    name: str
    scopes: list[str]
    old_secret_expires_at: datetime | None
    created_at: datetime

    def view(self) -> dict[str, object]:
        return {
            "id": self.user_id,
            "client_id": str(self.user_id),
            "name": self.name,
            "scopes": self.scopes,
            "old_secret_expires_at": self.old_secret_expires_at,
            "created_at": self.created_at,
        }


@dataclass(frozen=True, slots=True)
class ServiceClient:
    """What the issue of a token to a program needs to know."""

    user_id: UserId
    scopes: list[str]
    secret_hash: bytes
    old_secret_hash: bytes | None
    old_secret_expires_at: datetime | None
    version: int


@dataclass(frozen=True, slots=True)
class AccessToken:
    """An answer of the token endpoint without a refresh token (RFC 6749, section 4.4.3)."""

    access_token: str
    expires_in: int
    scope: str

    def view(self) -> dict[str, object]:
        return {
            "access_token": self.access_token,
            "token_type": "Bearer",
            "expires_in": self.expires_in,
            "scope": self.scope,
        }


@dataclass(frozen=True, slots=True)
class NewPasskey:
    """A passkey about to be stored. `public_key` is a COSE key."""

    user_id: UserId
    id: UUID
    credential_id: bytes
    public_key: bytes
    sign_count: int
    name: str
    transports: list[str]
    backed_up: bool


@dataclass(frozen=True, slots=True)
class Passkey:
    """A passkey as its owner sees it."""

    id: UUID
    name: str
    created_at: datetime
    last_used_at: datetime | None
    backed_up: bool
    transports: list[str]

    def view(self) -> dict[str, object]:
        return {
            "id": self.id,
            "name": self.name,
            "created_at": self.created_at,
            "last_used_at": self.last_used_at,
            "backed_up": self.backed_up,
            "transports": self.transports,
        }


@dataclass(frozen=True, slots=True)
class PasskeyCredential:
    """What the check of an answer by a passkey needs to know."""

    user_id: UserId
    id: UUID
    credential_id: bytes
    public_key: bytes
    sign_count: int


@dataclass(frozen=True, slots=True)
class TotpFactor:
    """A TOTP seed, sealed. `last_step` is the newest time step whose code was used."""

    secret_sealed: bytes
    last_step: int
    confirmed_at: datetime | None
    recovery_codes_left: int


@dataclass(frozen=True, slots=True)
class NewSecurityEvent:
    """An audit entry about to be stored. `data` is JSON text without secrets."""

    user_id: UserId
    id: UUID
    action: str
    actor_id: UUID | None
    session_id: UUID | None
    device: Device
    created_at: datetime
    data: str = "{}"


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

    def view(self) -> dict[str, object]:
        return {
            "id": self.id,
            "action": self.action,
            "actor_id": self.actor_id,
            "session_id": self.session_id,
            "ip": self.ip,
            "user_agent": self.user_agent,
            "data": orjson.Fragment(self.data),
            "created_at": self.created_at,
        }


@dataclass(frozen=True, slots=True)
class TrailEntry:
    """One entry of the audit trail of any account. `data` is JSON text."""

    user_id: UserId
    id: UUID
    action: str
    actor_id: UUID | None
    session_id: UUID | None
    ip: str | None
    user_agent: str | None
    data: str
    created_at: datetime

    def view(self) -> dict[str, object]:
        return {
            "user_id": self.user_id,
            "id": self.id,
            "action": self.action,
            "actor_id": self.actor_id,
            "session_id": self.session_id,
            "ip": self.ip,
            "user_agent": self.user_agent,
            "data": orjson.Fragment(self.data),
            "created_at": self.created_at,
        }


def roles_of(role: Role) -> tuple[str, ...]:
    """What the token's `roles` say of an account with `role`."""
    return ("user",) if role == "user" else ("user", "admin")


def session_end(now: datetime, idle_ttl: int, absolute_end: datetime) -> datetime:
    """When a session used `now` ends if it is not used again."""
    return min(now + timedelta(seconds=idle_ttl), absolute_end)
