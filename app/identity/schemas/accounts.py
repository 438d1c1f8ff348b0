"""Registration, addresses, passwords and the end of an account."""

from typing import Literal

from pydantic import Field

from app.identity.schemas.fields import (
    CURRENT_PASSWORD_HELP,
    NEW_PASSWORD_HELP,
    TRANSPORT_HELP,
    OneTimeTokenText,
    SentPassword,
    Transport,
)
from app.kernel.http import Email, Schema, Timestamp, example
from app.users.api import DisplayName, Locale, Timezone

_ONE_TIME_TOKEN = "Token of the link in the e-mail; it works once."


class RegisterRequest(
    Schema,
    json_schema_extra=example({"email": "ada@example.com", "password": "correct horse battery", "display_name": "Ada"}),
):
    """An account to register."""

    email: Email = Field(description="Address to log in with.")
    password: SentPassword = Field(description=NEW_PASSWORD_HELP)
    display_name: DisplayName | None = Field(None, description="Name that other users see, at most 100 characters.")
    locale: Locale = Field("en", description="Language tag (BCP 47), for instance `pt-BR`.")
    timezone: Timezone = Field("UTC", description="Time zone of the IANA database.")
    transport: Transport = Field("bearer", description=TRANSPORT_HELP)


class AcceptedResponse(Schema):
    """The request was taken."""

    status: Literal["accepted"] = Field(description="Always `accepted`.")


class EmailAddressRequest(Schema, json_schema_extra=example({"email": "ada@example.com"})):
    """An e-mail address."""

    email: Email = Field(description="Address of the account.")


class OneTimeTokenRequest(Schema, json_schema_extra=example({"token": "CJi8gGwUQE_Qw1dgSrkjNl8819koEl_uiL-zdBH-qz4"})):
    """A token that was sent by e-mail."""

    token: OneTimeTokenText = Field(description=_ONE_TIME_TOKEN)


class ResetPasswordRequest(
    Schema,
    json_schema_extra=example(
        {"token": "CJi8gGwUQE_Qw1dgSrkjNl8819koEl_uiL-zdBH-qz4", "new_password": "correct horse battery"}
    ),
):
    """A new password, and the token that allows it."""

    token: OneTimeTokenText = Field(description=_ONE_TIME_TOKEN)
    new_password: SentPassword = Field(description=NEW_PASSWORD_HELP)


class ChangePasswordRequest(
    Schema,
    json_schema_extra=example({"current_password": "correct horse battery", "new_password": "another staple entirely"}),
):
    """The present and the new password."""

    current_password: SentPassword = Field(description=CURRENT_PASSWORD_HELP)
    new_password: SentPassword = Field(description=NEW_PASSWORD_HELP)
    transport: Transport = Field("bearer", description=TRANSPORT_HELP)


class ChangeEmailRequest(
    Schema,
    json_schema_extra=example({"new_email": "lovelace@example.com", "current_password": "correct horse battery"}),
):
    """The address that the account is to have."""

    new_email: Email = Field(description="Address that a confirmation is sent to.")
    current_password: SentPassword = Field(description=CURRENT_PASSWORD_HELP)


class CurrentPasswordRequest(Schema, json_schema_extra=example({"current_password": "correct horse battery"})):
    """The password, to confirm the call."""

    current_password: SentPassword = Field(description=CURRENT_PASSWORD_HELP)


class PurgeResponse(Schema):
    """The account is closed."""

    purge_at: Timestamp = Field(description="When its data are deleted.")


class VerifiedResponse(Schema):
    """The address is proven."""

    status: Literal["verified"] = Field(description="Always `verified`.")


class ChangedResponse(Schema):
    """The address was changed."""

    status: Literal["changed"] = Field(description="Always `changed`.")
