"""The authenticated caller of a request."""

from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from app.kernel.ids import UserId


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller. `token_id` is the access token's `jti` or the API key's id."""

    user_id: UserId
    session_id: UUID | None
    scopes: frozenset[str]
    roles: frozenset[str]
    token_id: str
    kind: Literal["user", "api_key", "service"] = "user"
    # A client has asked for a token that may do less than its user.
    is_narrowed: bool = False
    # The administrator that acts for the user.
    actor_id: UserId | None = None
    # The user's id as it begins the keys of the response cache; made once per token instead of once per request.
    cache_key: str = field(init=False, repr=False)
    # An API key has a quota of its own, so that a program gone wild does not lock its user out.
    quota_key: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache_key", self.user_id.hex)
        quota_key = f"limits:key:{self.token_id}" if self.kind == "api_key" else f"limits:user:{self.user_id.hex}"
        object.__setattr__(self, "quota_key", quota_key)

    @property
    def api_key_id(self) -> UUID | None:
        """The id of the API key that the caller uses; None for a session."""
        return UUID(self.token_id) if self.kind == "api_key" else None

    @property
    def is_admin(self) -> bool:
        return "admin" in self.roles
