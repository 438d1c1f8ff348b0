"""Log-in with a code that is sent by e-mail."""

from typing import Annotated

from pydantic import Field

from app.identity.schemas.fields import TRANSPORT_HELP, AnyEmail, Transport
from app.identity.schemas.sessions import DeviceName
from app.kernel.http import Schema, example


class CodeLoginRequest(Schema, json_schema_extra=example({"email": "ada@example.com", "code": "123456"})):
    """A code, and the address it was sent to."""

    email: AnyEmail = Field(description="Address of the account.")
    code: Annotated[str, Field(min_length=1, max_length=64, examples=["123456"])] = Field(
        description="Six digits of the e-mail."
    )
    device_name: DeviceName | None = Field(
        None, description="Name of the device for the list of sessions, at most 100 characters."
    )
    transport: Transport = Field("bearer", description=TRANSPORT_HELP)
