"""Passkeys."""

from typing import Annotated, Any

from pydantic import Field

from app.identity.schemas.fields import TRANSPORT_HELP, AnyEmail, Transport
from app.identity.schemas.sessions import DeviceName
from app.kernel.http import EXAMPLE_ID, EXAMPLE_TIME, CreatedAt, Id, NextCursor, Schema, Timestamp, example
from app.kernel.validation.text import VisibleLine

PasskeyName = Annotated[str, VisibleLine(100), Field(examples=["Ada's phone"])]
Challenge = Annotated[str, Field(min_length=1, max_length=1024)]
_EXAMPLE = {
    "id": EXAMPLE_ID,
    "name": "iCloud Keychain",
    "created_at": EXAMPLE_TIME,
    "last_used_at": None,
    "backed_up": True,
    "transports": ["hybrid", "internal"],
}
_EXAMPLE_CREDENTIAL = {
    "id": "q83vEjRWeJASNFZ4kBI0Vg",
    "rawId": "q83vEjRWeJASNFZ4kBI0Vg",
    "type": "public-key",
    "clientExtensionResults": {},
}
_EXAMPLE_CREATED = _EXAMPLE_CREDENTIAL | {
    "response": {"clientDataJSON": "eyJ0eXBlIjoid2ViYXV0aG4uY3JlYXRlIn0", "attestationObject": "o2NmbXRkbm9uZQ"}
}
_EXAMPLE_ASSERTION = _EXAMPLE_CREDENTIAL | {
    "response": {
        "clientDataJSON": "eyJ0eXBlIjoid2ViYXV0aG4uZ2V0In0",
        "authenticatorData": "SZYN5YgOjGh0NBcPZHZgW4",
        "signature": "MEUCIQDxyz",
    }
}
_CREDENTIAL_HELP = "What the browser has answered, by `toJSON()` of its `PublicKeyCredential`."


class CreationOptionsResponse(Schema):
    """What a browser needs to make a passkey."""

    public_key: dict[str, Any] = Field(
        description="For `PublicKeyCredential.parseCreationOptionsFromJSON`; good for five minutes."
    )


class PasskeyRequest(Schema, json_schema_extra=example({"credential": _EXAMPLE_CREATED, "name": "Ada's phone"})):
    """A passkey to add."""

    credential: dict[str, Any] = Field(description=_CREDENTIAL_HELP)
    name: PasskeyName | None = Field(
        None, description="Name for the list, at most 100 characters; absent: that of the authenticator."
    )


class PasskeyRenameRequest(Schema, json_schema_extra=example({"name": "Ada's phone"})):
    """A JSON merge patch (RFC 7396) of a passkey."""

    name: PasskeyName = Field(description="Name for the list, at most 100 characters.")


class PasskeyResponse(Schema, json_schema_extra=example(_EXAMPLE)):
    """A passkey."""

    id: Id = Field(description="Id of the passkey.")
    name: str = Field(description="Name of the passkey.")
    created_at: CreatedAt
    last_used_at: Timestamp | None = Field(description="When it was last used; null: never.")
    backed_up: bool = Field(description="Whether it is synchronised, so that it outlives its device.")
    transports: list[str] = Field(description="How browsers reach its authenticator (WebAuthn level 3).")


class PasskeyPage(Schema):
    """A page of passkeys, newest first."""

    items: list[PasskeyResponse] = Field(description="Passkeys, newest first.")
    next_cursor: NextCursor


class LoginOptionsRequest(Schema, json_schema_extra=example({"email": "ada@example.com"})):
    """An address, which may be left out: passkeys name their user themselves."""

    email: AnyEmail | None = Field(None, description="Address of the account; the response is the same for all.")


class LoginOptionsResponse(Schema):
    """What a browser needs to log in with a passkey."""

    public_key: dict[str, Any] = Field(description="For `PublicKeyCredential.parseRequestOptionsFromJSON`.")
    challenge: str = Field(description="Send it with the credential; it lives five minutes.")


class PasskeyLoginRequest(
    Schema, json_schema_extra=example({"credential": _EXAMPLE_ASSERTION, "challenge": "q83vEjRWeJASNFZ4kBI0Vg"})
):
    """A proof that the user holds a passkey."""

    credential: dict[str, Any] = Field(description=_CREDENTIAL_HELP)
    challenge: Challenge = Field(description="`challenge` of the options.")
    device_name: DeviceName | None = Field(
        None, description="Name of the device for the list of sessions, at most 100 characters."
    )
    transport: Transport = Field("bearer", description=TRANSPORT_HELP)
