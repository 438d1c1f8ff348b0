"""What the identity routes take and answer."""

from typing import Annotated, Any, Literal

from pydantic import MISSING, BaseModel, Field
from typing_extensions import TypeAliasType

from app.identity.records import AccountStatus
from app.kernel.auth import Role
from app.kernel.http import (
    EXAMPLE_ID,
    EXAMPLE_TIME,
    CreatedAt,
    Email,
    EmailText,
    Id,
    NextCursor,
    PageQuery,
    Schema,
    Timestamp,
    example,
)
from app.kernel.text import VisibleLine, VisibleText
from app.users.api import EXAMPLE_USER, DisplayName, Locale, Timezone, UserAnswer

MAX_SENT_PASSWORD = 1024


# Log-in says no more of a malformed address than of an unknown one.
AnyEmail = Annotated[str, Field(min_length=1, max_length=254, examples=["ada@example.com"])]
SentPassword = Annotated[str, Field(min_length=1, max_length=MAX_SENT_PASSWORD, examples=["correct horse battery"])]
RefreshTokenText = Annotated[str, Field(min_length=1, max_length=4096)]
OneTimeTokenText = Annotated[str, Field(min_length=1, max_length=256)]
Code = Annotated[str, Field(min_length=6, max_length=64, examples=["123456"])]
Scope = TypeAliasType(
    "Scope",
    Literal[
        "profile:read",
        "profile:write",
        "events:read",
        "events:write",
        "jobs:read",
        "jobs:write",
        "webhooks:manage",
        "admin",
    ],
)
SecondFactorMethod = TypeAliasType("SecondFactorMethod", Literal["totp", "recovery_code"])
DeviceName = Annotated[str, VisibleLine(100), Field(examples=["Ada's laptop"])]
_EXAMPLE_TOKENS = {
    "access_token": "eyJhbGciOiJFZERTQSIsInR5cCI6ImF0K2p3dCJ9.eyJzdWIiOiIwMTk4In0.c2lnbmF0dXJl",
    "token_type": "Bearer",
    "expires_in": 600,
    "refresh_token": "rt_5Jk2vXq0Zb7Wc9Ye1Rf3Tg5Uh8Io4Pa6",
    "scope": "events:read events:write profile:read",
}
_EXAMPLE_API_KEY = {
    "id": EXAMPLE_ID,
    "name": "nightly import",
    "scopes": ["events:write"],
    "expires_at": None,
    "last_used_at": None,
    "created_at": EXAMPLE_TIME,
}
_PASSWORD = "Password of the account, at most 1,024 characters."
_NEW_PASSWORD = "Password, 8 to 256 characters, none of the common ones, and unlike the address and name."
_CURRENT_PASSWORD = "Present password of the account."
_ONE_TIME_TOKEN = "Token of the link in the e-mail; it works once."
_REFRESH_TOKEN = "Refresh token, which begins with `rt_`; it works once."
_CODE = "Six digits of the authenticator app, or a recovery code."


class RegisterBody(
    Schema,
    json_schema_extra=example({"email": "ada@example.com", "password": "correct horse battery", "display_name": "Ada"}),
):
    """An account to register."""

    email: Email = Field(description="Address to log in with.")
    password: SentPassword = Field(description=_NEW_PASSWORD)
    display_name: DisplayName | None = Field(None, description="Name that other users see, at most 100 characters.")
    locale: Locale = Field("en", description="Language tag (BCP 47), for instance `pt-BR`.")
    timezone: Timezone = Field("UTC", description="Time zone of the IANA database.")


class LoginBody(
    Schema,
    json_schema_extra=example(
        {"email": "ada@example.com", "password": "correct horse battery", "device_name": "Ada's laptop"}
    ),
):
    """Credentials of an account."""

    email: AnyEmail = Field(description="Address of the account.")
    password: SentPassword = Field(description=_PASSWORD)
    device_name: DeviceName | None = Field(
        None, description="Name of the device for the list of sessions, at most 100 characters."
    )


class RefreshBody(Schema, json_schema_extra=example({"refresh_token": "rt_5Jk2vXq0Zb7Wc9Ye1Rf3Tg5Uh8Io4Pa6"})):
    """A refresh token to exchange."""

    refresh_token: RefreshTokenText = Field(description=_REFRESH_TOKEN)


class LogoutBody(Schema, json_schema_extra=example({"refresh_token": "rt_5Jk2vXq0Zb7Wc9Ye1Rf3Tg5Uh8Io4Pa6"})):
    """The session to end, if it is not that of the access token."""

    refresh_token: RefreshTokenText | None = Field(None, description="Refresh token of the session.")


class LogoutAllBody(Schema, json_schema_extra=example({"keep_current": True})):
    """Which sessions to end."""

    keep_current: bool = Field(default=False, description="Whether the session of the access token stays.")


class TokensView(Schema, json_schema_extra=example(_EXAMPLE_TOKENS)):
    """Tokens of a session (RFC 6749, section 5.1)."""

    access_token: str = Field(description="JWT (RFC 9068) to send as `Authorization: Bearer`.")
    token_type: str = Field(description="Always `Bearer`.")
    expires_in: int = Field(description="Lifetime of the access token in seconds.")
    refresh_token: str = Field(description=_REFRESH_TOKEN)
    scope: str = Field(description="Scopes of the access token, separated by spaces.")


class SignedInView(Schema, json_schema_extra=example({"user": EXAMPLE_USER, "tokens": _EXAMPLE_TOKENS})):
    """A user and the tokens of a new session."""

    user: UserAnswer
    tokens: TokensView


class SessionView(Schema):
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

    items: list[SessionView] = Field(description="Sessions, last used first.")
    next_cursor: NextCursor


class RevokedView(Schema):
    """How much has ended."""

    revoked: int = Field(description="How many sessions have ended.")


class JwkView(Schema):
    """A public key (RFC 8037)."""

    kty: str = Field(description="Key type: `OKP`.")
    crv: str = Field(description="Curve: `Ed25519`.")
    alg: str = Field(description="Algorithm: `EdDSA`.")
    use: str = Field(description="Use: `sig`.")
    kid: str = Field(description="Id of the key, as in the header of tokens.")
    x: str = Field(description="The public key in base64url.")


class JwksView(Schema):
    """The public keys of access tokens (RFC 7517)."""

    keys: list[JwkView] = Field(description="Keys that sign, will sign, or have signed tokens that are still good.")


class SecondFactorNeededView(Schema):
    """The password was right; the log-in goes on at `/v1/auth/mfa/verify`."""

    mfa_required: Literal[True] = Field(description="Always true.")
    mfa_token: str = Field(description="Send it with the code; it lives ten minutes.")
    methods: list[SecondFactorMethod] = Field(description="Ways to prove the second factor.")


class VerifySecondFactorBody(
    Schema, json_schema_extra=example({"mfa_token": "b9f24f3a0c2d5e6f7a8b9c0d1e2f3a4b", "code": "123456"})
):
    """The second step of a log-in."""

    mfa_token: Annotated[str, Field(min_length=1, max_length=1024)] = Field(
        description="`mfa_token` of the first step."
    )
    code: Code = Field(description=_CODE)


class AcceptedView(Schema):
    """The request was taken."""

    status: Literal["accepted"] = Field(description="Always `accepted`.")


class EmailBody(Schema, json_schema_extra=example({"email": "ada@example.com"})):
    """An e-mail address."""

    email: Email = Field(description="Address of the account.")


class OneTimeTokenBody(Schema, json_schema_extra=example({"token": "CJi8gGwUQE_Qw1dgSrkjNl8819koEl_uiL-zdBH-qz4"})):
    """A token that was sent by e-mail."""

    token: OneTimeTokenText = Field(description=_ONE_TIME_TOKEN)


class ResetPasswordBody(
    Schema,
    json_schema_extra=example(
        {"token": "CJi8gGwUQE_Qw1dgSrkjNl8819koEl_uiL-zdBH-qz4", "new_password": "correct horse battery"}
    ),
):
    """A new password, and the token that allows it."""

    token: OneTimeTokenText = Field(description=_ONE_TIME_TOKEN)
    new_password: SentPassword = Field(description=_NEW_PASSWORD)


class ChangePasswordBody(
    Schema,
    json_schema_extra=example({"current_password": "correct horse battery", "new_password": "another staple entirely"}),
):
    """The present and the new password."""

    current_password: SentPassword = Field(description=_CURRENT_PASSWORD)
    new_password: SentPassword = Field(description=_NEW_PASSWORD)


class ChangeEmailBody(
    Schema,
    json_schema_extra=example({"new_email": "lovelace@example.com", "current_password": "correct horse battery"}),
):
    """The address that the account is to have."""

    new_email: Email = Field(description="Address that a confirmation is sent to.")
    current_password: SentPassword = Field(description=_CURRENT_PASSWORD)


class CurrentPasswordBody(Schema, json_schema_extra=example({"current_password": "correct horse battery"})):
    """The password, to confirm the call."""

    current_password: SentPassword = Field(description=_CURRENT_PASSWORD)


class CodeBody(Schema, json_schema_extra=example({"code": "123456"})):
    """A code of the authenticator app."""

    code: Code = Field(description="Six digits of the authenticator app.")


class PurgeView(Schema):
    """The account is closed."""

    purge_at: Timestamp = Field(description="When its data are deleted.")


class VerifiedView(Schema):
    """The address is proven."""

    status: Literal["verified"] = Field(description="Always `verified`.")


class ChangedView(Schema):
    """The address was changed."""

    status: Literal["changed"] = Field(description="Always `changed`.")


class ApiKeyBody(Schema, json_schema_extra=example({"name": "nightly import", "scopes": ["events:write"]})):
    """An API key to create."""

    name: Annotated[str, VisibleLine(100), Field(examples=["nightly import"])] = Field(
        description="Name of the key for the list, 1 to 100 characters."
    )
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=20, examples=[["events:write"]])] = Field(
        description="What the key may do; each must be a scope of the caller."
    )
    expires_at: Timestamp | None = Field(None, description="When the key ends; absent or null: never.")


class ApiKeyView(Schema, json_schema_extra=example(_EXAMPLE_API_KEY)):
    """An API key without its secret."""

    id: Id = Field(description="Id of the key.")
    name: str = Field(description="Name of the key.")
    scopes: list[Scope] = Field(description="What the key may do.")
    expires_at: Timestamp | None = Field(description="When the key ends; null: never.")
    last_used_at: Timestamp | None = Field(
        description="When the key was last used, to within some minutes; null: never."
    )
    created_at: CreatedAt


class ApiKeyCreated(
    ApiKeyView, json_schema_extra=example(_EXAMPLE_API_KEY | {"key": "ak_5Jk2vXq0Zb7Wc9Ye1Rf3Tg5Uh8Io4Pa6"})
):
    """An API key with its secret, which no other answer contains."""

    key: str = Field(description="The secret, which begins with `ak_`, to send as `Authorization: Bearer`.")


class ApiKeyList(Schema):
    """A page of API keys, newest first."""

    items: list[ApiKeyView] = Field(description="Keys, newest first.")
    next_cursor: NextCursor


class EnrolmentView(Schema):
    """The secret for an authenticator app."""

    secret: str = Field(description="The secret in base32, to type in.")
    otpauth_uri: str = Field(description="The same as a URI that authenticator apps open.")
    qr_svg: str = Field(description="The URI as a QR code, an SVG image.")


class RecoveryCodesView(Schema):
    """Recovery codes, which no other answer contains."""

    recovery_codes: list[str] = Field(description="Codes that each replace the authenticator app once.")


class SecondFactorView(Schema):
    """The state of the second factor."""

    totp_enabled: bool = Field(description="Whether a log-in needs a code.")
    recovery_codes_left: int = Field(description="How many recovery codes have not been used.")


class SecurityEventView(Schema):
    """An entry of the audit trail of an account."""

    id: Id = Field(description="Id of the entry.")
    action: str = Field(description="What happened, for programs, for instance `logged_in`.")
    actor_id: Id | None = Field(description="The user that did it; null: the service or an unknown client.")
    session_id: Id | None = Field(description="The session that it was done in; null: none.")
    ip: str | None = Field(description="Address of the client; null: not known.")
    user_agent: str | None = Field(description="`User-Agent` of the client; null: none.")
    data: dict[str, Any] = Field(description="Anything else about it.")
    created_at: Timestamp = Field(description="When it happened.")


class SecurityEventPage(Schema):
    """A page of the audit trail, newest first."""

    items: list[SecurityEventView] = Field(description="Entries, newest first.")
    next_cursor: NextCursor


FormText = Annotated[str, Field(max_length=4096)]


def _describe_as_required(schema: dict[str, Any]) -> None:
    del schema["default"]
    schema["minLength"] = 1


def _required(description: str) -> Any:
    """A parameter whose absence is an error in OAuth's own words, so the model takes a form without it."""
    return Field("", description=description, json_schema_extra=_describe_as_required)


class TokenForm(
    BaseModel,
    json_schema_extra=example(
        {"grant_type": "password", "username": "ada@example.com", "password": "correct horse battery"}
    )
    | {"required": ["grant_type"]},
):
    """RFC 6749, sections 4.3 and 6. Unknown parameters are ignored, as section 3.2 demands."""

    grant_type: FormText = _required("`password` or `refresh_token`.")
    username: FormText = Field("", description="Address of the account, for `password`.")
    password: FormText = Field("", description="Password of the account, for `password`.")
    refresh_token: FormText = Field("", description="Refresh token, for `refresh_token`.")
    scope: FormText = Field(
        "", description="Scopes that the tokens are to have, separated by spaces; empty: all that may be had."
    )
    client_id: FormText = Field("", description="Ignored: clients do not register.")
    client_secret: FormText = Field("", description="Ignored: clients do not register.")


class TokenOnlyForm(
    BaseModel,
    json_schema_extra=example({"token": "rt_5Jk2vXq0Zb7Wc9Ye1Rf3Tg5Uh8Io4Pa6"}) | {"required": ["token"]},
):
    """RFC 7662, section 2.1, and RFC 7009, section 2.1. The form of a token tells its type, so the hint is not
    needed.
    """

    token: FormText = _required("The token, of any type.")
    token_type_hint: FormText = Field("", description="Ignored: the token shows its type.")


class IntrospectionView(BaseModel):
    """RFC 7662, section 2.2."""

    active: bool = Field(description="Whether the token is good; if not, no other member is present.")
    sub: str | MISSING = Field(MISSING, description="Id of the user.")
    scope: str | MISSING = Field(MISSING, description="Scopes, separated by spaces.")
    jti: str | MISSING = Field(MISSING, description="Id of the token.")
    iss: str | MISSING = Field(MISSING, description="The service that issued it.")
    aud: str | MISSING = Field(MISSING, description="Whom it is for.")
    iat: int | MISSING = Field(MISSING, description="When it was issued, in seconds since 1970.")
    exp: int | MISSING = Field(MISSING, description="When it expires, in seconds since 1970.")
    token_type: str | MISSING = Field(MISSING, description="`Bearer`, or `refresh_token`.")
    client_id: str | MISSING = Field(MISSING, description="The client that the token was issued to.")


class OAuthErrorView(Schema):
    """RFC 6749, section 5.2."""

    error: str = Field(description="What went wrong, for programs, for instance `invalid_grant`.")
    error_description: str = Field(description="What went wrong, for people.")


class DiscoveryView(Schema):
    """RFC 8414, as far as it applies here."""

    issuer: str = Field(description="The issuer of tokens, their `iss`.")
    jwks_uri: str = Field(description="Address of the public keys.")
    token_endpoint: str = Field(description="Address of the token endpoint.")
    introspection_endpoint: str = Field(description="Address of introspection (RFC 7662).")
    revocation_endpoint: str = Field(description="Address of revocation (RFC 7009).")
    grant_types_supported: list[str] = Field(description="Grants of the token endpoint.")
    response_types_supported: list[str] = Field(
        description="Response types of an authorization endpoint, which does not exist here."
    )
    token_endpoint_auth_methods_supported: list[str] = Field(
        description="How clients authenticate at the token endpoint."
    )
    revocation_endpoint_auth_methods_supported: list[str] = Field(description="How clients authenticate to revoke.")
    introspection_endpoint_auth_methods_supported: list[str] = Field(
        description="How callers of introspection authenticate."
    )
    scopes_supported: list[Scope] = Field(description="Scopes that tokens may have.")


class AdminAccountView(Schema):
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

    items: list[AdminAccountView] = Field(description="Accounts, newest first.")
    next_cursor: NextCursor


class AdminAccountQuery(PageQuery):
    """Filters of the list of accounts."""

    q: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(None, description="Part of the address.")
    status: AccountStatus | None = Field(None, description="Only accounts in this state.")
    role: Role | None = Field(None, description="Only accounts with this role.")


class AdminAccountPatch(Schema, json_schema_extra=example({"role": "admin"})):
    """A JSON merge patch (RFC 7396) of an account."""

    role: Role = Field(description="Role that the account is to have.")


class BanBody(Schema, json_schema_extra=example({"reason": "Spam"})):
    """Why an account is banned."""

    reason: Annotated[str, VisibleText(500)] | None = Field(
        None, description="Reason, for administrators, at most 500 characters."
    )
