"""What a person or a program proves itself by, besides a password."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app.kernel.auth import Role
from app.kernel.ids import UserId


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
