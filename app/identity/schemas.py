"""What the identity routes take and answer."""

from typing import Annotated

from email_validator import EmailNotValidError, validate_email
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from app.kernel.http import Id, Schema, Timestamp
from app.users.api import DisplayName, Locale, Timezone

MAX_SENT_PASSWORD = 1024


def _check_email(value: str) -> str:
    try:
        return validate_email(value, check_deliverability=False, test_environment=True).normalized
    except EmailNotValidError as error:
        raise PydanticCustomError("invalid_email", "Not an e-mail address.") from error


Email = Annotated[str, Field(min_length=3, max_length=254, examples=["ada@example.com"]), AfterValidator(_check_email)]
# Log-in says no more of a malformed address than of an unknown one.
AnyEmail = Annotated[str, Field(min_length=1, max_length=254, examples=["ada@example.com"])]
SentPassword = Annotated[str, Field(min_length=1, max_length=MAX_SENT_PASSWORD, examples=["correct horse battery"])]
RefreshTokenText = Annotated[str, Field(min_length=1, max_length=4096)]
DeviceName = Annotated[str, Field(min_length=1, max_length=100, examples=["Ada's laptop"])]


class RegisterBody(Schema):
    email: Email
    password: SentPassword
    display_name: DisplayName | None = None
    locale: Locale = "en"
    timezone: Timezone = "UTC"


class LoginBody(Schema):
    email: AnyEmail
    password: SentPassword
    device_name: DeviceName | None = None


class RefreshBody(Schema):
    refresh_token: RefreshTokenText


class LogoutBody(Schema):
    refresh_token: RefreshTokenText | None = None


class LogoutAllBody(Schema):
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
