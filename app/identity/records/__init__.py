"""What the module's tables hold, and the pure rules about it: here of accounts and of who acts."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from typing_extensions import TypeAliasType

from app.kernel.auth import Role
from app.kernel.ids import UserId

AccountStatus = TypeAliasType("AccountStatus", Literal["active", "banned", "deleted"])
TokenPurpose = Literal["verify_email", "reset_password", "change_email", "log_in"]
SecondFactorMethod = TypeAliasType("SecondFactorMethod", Literal["totp", "recovery_code", "passkey"])


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
NO_ACCOUNT_ID = UserId(UUID(int=0))
OPERATOR_ID = NO_ACCOUNT_ID


def operator(name: str) -> Actor:
    """Someone with access to the machine, at the command line. `name` stands in place of a user agent."""
    return Actor(OPERATOR_ID, None, Device(None, name), is_operator=True)


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
