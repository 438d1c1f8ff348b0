"""Accounts, as administrators see and change them."""

from typing import Annotated

from pydantic import Field

from app.identity.records import AccountStatus
from app.identity.schemas.fields import EXAMPLE_TOKENS
from app.identity.schemas.sessions import SecurityEventResponse
from app.kernel.auth import Role
from app.kernel.http import CreatedAt, EmailText, Id, NextCursor, PageQuery, Schema, Timestamp, example
from app.kernel.validation.text import VisibleText

_EXAMPLE_IMPERSONATION = {name: EXAMPLE_TOKENS[name] for name in ("access_token", "token_type", "scope")} | {
    "expires_in": 1800
}


class AdminAccountResponse(Schema):
    """An account, as an administrator sees it."""

    id: Id = Field(description="Id of the user.")
    email: EmailText = Field(description="The address that the account logs in with.")
    email_verified: bool = Field(description="Whether the user has proven the address.")
    status: AccountStatus = Field(description="Whether the account can be used.")
    role: Role = Field(description="Role of the account.")
    totp_enabled: bool = Field(description="Whether a log-in needs a code.")
    banned_at: Timestamp | None = Field(description="When it was banned; null: it is not.")
    ban_reason: str | None = Field(description="Why it was banned; null: it is not, or no reason was given.")
    last_login_at: Timestamp | None = Field(description="When it was last logged in to; null: never.")
    created_at: CreatedAt
    deleted_at: Timestamp | None = Field(description="When it was closed; null: it is not.")
    purge_at: Timestamp | None = Field(description="When its data are deleted; null: they stay.")


class AdminAccountPage(Schema):
    """A page of accounts, newest first."""

    items: list[AdminAccountResponse] = Field(description="Accounts, newest first.")
    next_cursor: NextCursor


class AdminAccountQuery(PageQuery):
    """Filters of the list of accounts."""

    q: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(None, description="Part of the address.")
    status: AccountStatus | None = Field(None, description="Only accounts in this state.")
    role: Role | None = Field(None, description="Only accounts with this role.")


class PatchAccountRequest(Schema, json_schema_extra=example({"role": "admin"})):
    """A JSON merge patch (RFC 7396) of an account."""

    role: Role = Field(description="Role that the account is to have.")


class ImpersonateRequest(Schema, json_schema_extra=example({"reason": "Ticket 4711: the export is empty"})):
    """Why an administrator acts for a user."""

    reason: Annotated[str, VisibleText(500)] = Field(description="Reason, for the audit trail, 1 to 500 characters.")


class ImpersonationResponse(Schema, json_schema_extra=example(_EXAMPLE_IMPERSONATION)):
    """An access token to act for a user."""

    access_token: str = Field(description="JWT (RFC 9068) whose `act` names the administrator.")
    token_type: str = Field(description="Always `Bearer`.")
    expires_in: int = Field(description="Lifetime of the access token in seconds.")
    scope: str = Field(description="Scopes of the access token, separated by spaces.")


class BanRequest(Schema, json_schema_extra=example({"reason": "Spam"})):
    """Why an account is banned."""

    reason: Annotated[str, VisibleText(500)] | None = Field(
        None, description="Reason, for administrators, at most 500 characters."
    )


class TrailQuery(PageQuery):
    """Filters of the list of all users' security events."""

    user_id: Id | None = Field(None, description="Only events in the trail of this user.")
    type: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        None, description="Only events with this `action`."
    )
    since: Timestamp | None = Field(None, description="Only events from this time on.")


class TrailEntryResponse(SecurityEventResponse):
    """An entry of the audit trail of any account."""

    user_id: Id = Field(description="The account whose trail it is in; zeros: that of operators.")


class TrailPage(Schema):
    """A page of the audit trails of all accounts, newest first."""

    items: list[TrailEntryResponse] = Field(description="Entries, newest first.")
    next_cursor: NextCursor
