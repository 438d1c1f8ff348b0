"""What the identity routes take and answer."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.kernel.http import Email, Id, PageQuery, Schema, Timestamp, example
from app.kernel.text import VisibleLine, VisibleText
from app.users.api import DisplayName, Locale, Timezone

MAX_SENT_PASSWORD = 1024


# Log-in says no more of a malformed address than of an unknown one.
AnyEmail = Annotated[str, Field(min_length=1, max_length=254, examples=["ada@example.com"])]
SentPassword = Annotated[str, Field(min_length=1, max_length=MAX_SENT_PASSWORD, examples=["correct horse battery"])]
RefreshTokenText = Annotated[str, Field(min_length=1, max_length=4096)]
OneTimeTokenText = Annotated[str, Field(min_length=1, max_length=256)]
Code = Annotated[str, Field(min_length=6, max_length=64, examples=["123456"])]
Scope = Literal[
    "profile:read",
    "profile:write",
    "events:read",
    "events:write",
    "jobs:read",
    "jobs:write",
    "webhooks:manage",
    "admin",
]
DeviceName = Annotated[str, VisibleLine(100), Field(examples=["Ada's laptop"])]


class RegisterBody(
    Schema,
    json_schema_extra=example({"email": "ada@example.com", "password": "correct horse battery", "display_name": "Ada"}),
):
    email: Email
    password: SentPassword
    display_name: DisplayName | None = None
    locale: Locale = "en"
    timezone: Timezone = "UTC"


class LoginBody(
    Schema,
    json_schema_extra=example(
        {"email": "ada@example.com", "password": "correct horse battery", "device_name": "Ada's laptop"}
    ),
):
    email: AnyEmail
    password: SentPassword
    device_name: DeviceName | None = None


class RefreshBody(Schema, json_schema_extra=example({"refresh_token": "rt_5Jk2vXq0Zb7Wc9Ye1Rf3Tg5Uh8Io4Pa6"})):
    refresh_token: RefreshTokenText


class LogoutBody(Schema, json_schema_extra=example({"refresh_token": "rt_5Jk2vXq0Zb7Wc9Ye1Rf3Tg5Uh8Io4Pa6"})):
    refresh_token: RefreshTokenText | None = None


class LogoutAllBody(Schema, json_schema_extra=example({"keep_current": True})):
    keep_current: bool = False


class TokensView(Schema):
    access_token: str
    token_type: str
    expires_in: int
    refresh_token: str
    scope: str


class AccountView(Schema):
    """The user as in `GET /v1/users/me`."""

    id: Id
    email: str
    email_verified: bool
    display_name: str | None
    bio: str | None
    avatar_url: str | None
    locale: str
    timezone: str
    created_at: Timestamp
    updated_at: Timestamp


class SignedInView(Schema):
    user: AccountView
    tokens: TokensView


class SessionView(Schema):
    id: Id
    current: bool
    created_at: Timestamp
    last_used_at: Timestamp
    ip: str | None
    user_agent: str | None
    device_name: str | None
    expires_at: Timestamp


class SessionList(Schema):
    items: list[SessionView]
    next_cursor: str | None


class RevokedView(Schema):
    revoked: int


class JwkView(Schema):
    kty: str
    crv: str
    alg: str
    use: str
    kid: str
    x: str


class JwksView(Schema):
    keys: list[JwkView]


class SecondFactorNeededView(Schema):
    mfa_required: Literal[True]
    mfa_token: str
    methods: list[str]


class VerifySecondFactorBody(
    Schema, json_schema_extra=example({"mfa_token": "b9f24f3a0c2d5e6f7a8b9c0d1e2f3a4b", "code": "123456"})
):
    mfa_token: Annotated[str, Field(min_length=1, max_length=1024)]
    code: Code


class AcceptedView(Schema):
    status: Literal["accepted"]


class EmailBody(Schema, json_schema_extra=example({"email": "ada@example.com"})):
    email: Email


class OneTimeTokenBody(Schema, json_schema_extra=example({"token": "CJi8gGwUQE_Qw1dgSrkjNl8819koEl_uiL-zdBH-qz4"})):
    token: OneTimeTokenText


class ResetPasswordBody(
    Schema,
    json_schema_extra=example(
        {"token": "CJi8gGwUQE_Qw1dgSrkjNl8819koEl_uiL-zdBH-qz4", "new_password": "correct horse battery"}
    ),
):
    token: OneTimeTokenText
    new_password: SentPassword


class ChangePasswordBody(
    Schema,
    json_schema_extra=example({"current_password": "correct horse battery", "new_password": "another staple entirely"}),
):
    current_password: SentPassword
    new_password: SentPassword


class ChangeEmailBody(
    Schema,
    json_schema_extra=example({"new_email": "lovelace@example.com", "current_password": "correct horse battery"}),
):
    new_email: Email
    current_password: SentPassword


class CurrentPasswordBody(Schema, json_schema_extra=example({"current_password": "correct horse battery"})):
    current_password: SentPassword


class CodeBody(Schema, json_schema_extra=example({"code": "123456"})):
    code: Code


class PurgeView(Schema):
    purge_at: Timestamp


class VerifiedView(Schema):
    status: Literal["verified"]


class ChangedView(Schema):
    status: Literal["changed"]


class ApiKeyBody(Schema, json_schema_extra=example({"name": "nightly import", "scopes": ["events:write"]})):
    name: Annotated[str, VisibleLine(100), Field(examples=["nightly import"])]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=20, examples=[["events:write"]])]
    expires_at: Timestamp | None = None


class ApiKeyView(Schema):
    id: Id
    name: str
    scopes: list[str]
    expires_at: Timestamp | None
    last_used_at: Timestamp | None
    created_at: Timestamp


class NewApiKeyView(ApiKeyView):
    key: str


class ApiKeyList(Schema):
    items: list[ApiKeyView]
    next_cursor: str | None


class EnrolmentView(Schema):
    secret: str
    otpauth_uri: str
    qr_svg: str


class RecoveryCodesView(Schema):
    recovery_codes: list[str]


class SecondFactorView(Schema):
    totp_enabled: bool
    recovery_codes_left: int


class SecurityEventView(Schema):
    id: Id
    action: str
    actor_id: Id | None
    session_id: Id | None
    ip: str | None
    user_agent: str | None
    data: dict[str, Any]
    created_at: Timestamp


class SecurityEventPage(Schema):
    items: list[SecurityEventView]
    next_cursor: str | None


FormText = Annotated[str, Field(max_length=4096)]


def _describe_as_required(schema: dict[str, Any]) -> None:
    del schema["default"]
    schema["minLength"] = 1


# What is missing is told in OAuth's own words, so the model takes it.
_REQUIRED: Any = Field("", json_schema_extra=_describe_as_required)


class TokenForm(
    BaseModel,
    json_schema_extra=example(
        {"grant_type": "password", "username": "ada@example.com", "password": "correct horse battery"}
    )
    | {"required": ["grant_type"]},
):
    """RFC 6749, sections 4.3 and 6. Unknown parameters are ignored, as section 3.2 demands."""

    grant_type: FormText = _REQUIRED
    username: FormText = ""
    password: FormText = ""
    refresh_token: FormText = ""
    scope: FormText = ""
    client_id: FormText = ""
    client_secret: FormText = ""


class TokenOnlyForm(
    BaseModel,
    json_schema_extra=example({"token": "rt_5Jk2vXq0Zb7Wc9Ye1Rf3Tg5Uh8Io4Pa6"}) | {"required": ["token"]},
):
    """RFC 7662, section 2.1, and RFC 7009, section 2.1. The form of a token tells its type, so the hint is not
    needed.
    """

    token: FormText = _REQUIRED
    token_type_hint: FormText = ""


class IntrospectionView(BaseModel):
    """RFC 7662, section 2.2."""

    active: bool
    sub: str | None = None
    scope: str | None = None
    jti: str | None = None
    iss: str | None = None
    aud: str | None = None
    iat: int | None = None
    exp: int | None = None
    token_type: str | None = None


class OAuthErrorView(Schema):
    """RFC 6749, section 5.2."""

    error: str
    error_description: str


class DiscoveryView(Schema):
    """RFC 8414, as far as it applies here."""

    issuer: str
    jwks_uri: str
    token_endpoint: str
    introspection_endpoint: str
    revocation_endpoint: str
    grant_types_supported: list[str]
    response_types_supported: list[str]
    subject_types_supported: list[str]
    id_token_signing_alg_values_supported: list[str]
    token_endpoint_auth_methods_supported: list[str]
    scopes_supported: list[str]


class AdminAccountView(Schema):
    id: Id
    email: str
    email_verified: bool
    status: Literal["active", "banned", "deleted"]
    role: Literal["user", "admin"]
    totp_enabled: bool
    banned_at: Timestamp | None
    ban_reason: str | None
    last_login_at: Timestamp | None
    created_at: Timestamp
    deleted_at: Timestamp | None
    purge_at: Timestamp | None


class AdminAccountPage(Schema):
    items: list[AdminAccountView]
    next_cursor: str | None


class AdminAccountQuery(PageQuery):
    q: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(None, description="Part of the address.")
    status: Literal["active", "banned", "deleted"] | None = None
    role: Literal["user", "admin"] | None = None


class AdminAccountPatch(Schema, json_schema_extra=example({"role": "admin"})):
    role: Literal["user", "admin"]


class BanBody(Schema, json_schema_extra=example({"reason": "Spam"})):
    reason: Annotated[str, VisibleText(500)] | None = None
