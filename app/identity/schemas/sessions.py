"""Log-in, log-out, sessions and the trail of what happened to an account."""

from typing import Annotated, Any, Literal

from pydantic import MISSING, Field

from app.identity.records import SecondFactorMethod
from app.identity.schemas.fields import (
    CODE_HELP,
    EXAMPLE_TOKENS,
    PASSWORD_HELP,
    TRANSPORT_HELP,
    AnyEmail,
    Code,
    SentPassword,
    Transport,
)
from app.kernel.http import EXAMPLE_ID, EXAMPLE_TIME, CreatedAt, Id, NextCursor, Schema, Timestamp, example
from app.kernel.validation.text import VisibleLine
from app.users.api import EXAMPLE_USER, UserResponse

RefreshTokenText = Annotated[str, Field(min_length=1, max_length=4096)]
DeviceName = Annotated[str, VisibleLine(100), Field(examples=["Ada's laptop"])]
_REFRESH_TOKEN = "Refresh token, which begins with `rt_`; it works once."


class LoginRequest(
    Schema,
    json_schema_extra=example(
        {"email": "ada@example.com", "password": "correct horse battery", "device_name": "Ada's laptop"}
    ),
):
    """Credentials of an account."""

    email: AnyEmail = Field(description="Address of the account.")
    password: SentPassword = Field(description=PASSWORD_HELP)
    device_name: DeviceName | None = Field(
        None, description="Name of the device for the list of sessions, at most 100 characters."
    )
    transport: Transport = Field("bearer", description=TRANSPORT_HELP)


class RefreshTokensRequest(Schema, json_schema_extra=example({"refresh_token": "rt_5Jk2vXq0Zb7Wc9Ye1Rf3Tg5Uh8Io4Pa6"})):
    """A refresh token to exchange. Without one, the session of the request's cookie is extended."""

    refresh_token: RefreshTokenText | None = Field(
        None, description=f"{_REFRESH_TOKEN} Absent or null: the session is that of the cookie."
    )
    transport: Transport = Field("bearer", description=TRANSPORT_HELP)


class LogoutRequest(Schema, json_schema_extra=example({"refresh_token": "rt_5Jk2vXq0Zb7Wc9Ye1Rf3Tg5Uh8Io4Pa6"})):
    """The session to end, if it is not that of the access token."""

    refresh_token: RefreshTokenText | None = Field(None, description="Refresh token of the session.")


class LogoutAllRequest(Schema, json_schema_extra=example({"keep_current": True})):
    """Which sessions to end."""

    keep_current: bool = Field(default=False, description="Whether the session of the access token stays.")


class TokensResponse(Schema, json_schema_extra=example(EXAMPLE_TOKENS)):
    """Tokens of a session (RFC 6749, section 5.1)."""

    access_token: str = Field(description="JWT (RFC 9068) to send as `Authorization: Bearer`.")
    token_type: str = Field(description="Always `Bearer`.")
    expires_in: int = Field(description="Lifetime of the access token in seconds.")
    refresh_token: str = Field(description=_REFRESH_TOKEN)
    scope: str = Field(description="Scopes of the access token, separated by spaces.")


class CookieResponse(Schema, json_schema_extra=example({"expires_in": 1_209_600, "scope": EXAMPLE_TOKENS["scope"]})):
    """What a session is good for whose credential travels in a cookie."""

    expires_in: int = Field(description="Seconds until the session ends unless it is used.")
    scope: str = Field(description="Scopes of the session, separated by spaces.")


class SignedInResponse(Schema, json_schema_extra=example({"user": EXAMPLE_USER, "tokens": EXAMPLE_TOKENS})):
    """A user and the tokens of a new session."""

    user: UserResponse
    tokens: TokensResponse | MISSING = Field(MISSING, description="Absent where the session travels in a cookie.")


class CallerResponse(
    Schema,
    json_schema_extra=example(
        {
            "user_id": EXAMPLE_ID,
            "session_id": EXAMPLE_ID,
            "roles": ["user"],
            "scopes": ["events:read", "events:write", "profile:read"],
            "expires_at": EXAMPLE_TIME,
            "authenticated_at": EXAMPLE_TIME,
            "methods": ["pwd", "otp"],
        }
    ),
):
    """The caller of a request."""

    user_id: Id = Field(description="Id of the user.")
    session_id: Id | None = Field(description="Id of the session; null: the caller has none, as with an API key.")
    roles: list[str] = Field(description="Roles of the user.")
    scopes: list[str] = Field(description="What the credential may be used for.")
    expires_at: Timestamp | None = Field(description="When the session ends unless it is used; null: no session.")
    authenticated_at: Timestamp | None = Field(description="When the user logged in; null: no session.")
    methods: list[str] = Field(description="How the user logged in, by the names of RFC 8176, `email` and `recovery`.")


class SessionResponse(Schema):
    """A session of an account."""

    id: Id = Field(description="Id of the session.")
    current: bool = Field(description="Whether the request belongs to it.")
    created_at: CreatedAt
    last_used_at: Timestamp = Field(description="When its tokens were last refreshed.")
    ip: str | None = Field(description="Address of the client that opened it; null: not known.")
    user_agent: str | None = Field(description="`User-Agent` of the client that opened it; null: none.")
    device_name: str | None = Field(description="Name that the client gave at log-in; null: none.")
    expires_at: Timestamp = Field(description="When it ends unless it is used.")


class SessionList(
    Schema,
    json_schema_extra=example(
        {
            "items": [
                {
                    "id": EXAMPLE_ID,
                    "current": True,
                    "created_at": EXAMPLE_TIME,
                    "last_used_at": EXAMPLE_TIME,
                    "ip": "203.0.113.7",
                    "user_agent": "curl/8.10.1",
                    "device_name": "Ada's laptop",
                    "expires_at": "2026-03-02T12:00:00.000000Z",
                }
            ],
            "next_cursor": None,
        }
    ),
):
    """A page of sessions, last used first."""

    items: list[SessionResponse] = Field(description="Sessions, last used first.")
    next_cursor: NextCursor


class RevokedResponse(Schema):
    """How much has ended."""

    revoked: int = Field(description="How many sessions have ended.")


class SecondFactorNeededResponse(Schema):
    """The first factor was proven; the log-in goes on at `/v1/auth/mfa/verify`."""

    mfa_required: Literal[True] = Field(description="Always true.")
    mfa_token: str = Field(description="Send it with the code; it lives ten minutes.")
    methods: list[SecondFactorMethod] = Field(description="Ways to prove the second factor.")


class VerifySecondFactorRequest(
    Schema, json_schema_extra=example({"mfa_token": "b9f24f3a0c2d5e6f7a8b9c0d1e2f3a4b", "code": "123456"})
):
    """The second step of a log-in: a code, or a passkey."""

    mfa_token: Annotated[str, Field(min_length=1, max_length=1024)] = Field(
        description="`mfa_token` of the first step."
    )
    code: Code | None = Field(None, description=f"{CODE_HELP} Absent or null: a passkey is sent.")
    credential: dict[str, Any] | None = Field(
        None, description="What the browser has answered to the options of `/v1/auth/passkeys/login/options`."
    )
    challenge: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        None, description="`challenge` of those options."
    )
    transport: Transport = Field("bearer", description=TRANSPORT_HELP)


class SecurityEventResponse(Schema):
    """An entry of the audit trail of an account."""

    id: Id = Field(description="Id of the entry.")
    action: str = Field(description="What happened, as a machine-readable code, for instance `logged_in`.")
    actor_id: Id | None = Field(description="The user that did it; null: the service or an unknown client.")
    session_id: Id | None = Field(description="The session that it was done in; null: none.")
    ip: str | None = Field(description="Address of the client; null: not known.")
    user_agent: str | None = Field(description="`User-Agent` of the client; null: none.")
    data: dict[str, Any] = Field(description="Anything else about it.")
    created_at: Timestamp = Field(description="When it happened.")


class SecurityEventPage(Schema):
    """A page of the audit trail, newest first."""

    items: list[SecurityEventResponse] = Field(description="Entries, newest first.")
    next_cursor: NextCursor
