"""Tokens, the keys that sign them, and what revokes them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from app.kernel.auth import Role
from app.users.api import User

SigningKeyState = Literal["next", "active", "retired"]


RevocationKind = Literal["session", "account", "api_key"]


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


def roles_of(role: Role) -> tuple[str, ...]:
    """What the token's `roles` say of an account with `role`."""
    return ("user",) if role == "user" else ("user", "admin")
