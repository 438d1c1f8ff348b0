"""Accounts of programs."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypeAliasType

from app.kernel.http import EXAMPLE_ID, EXAMPLE_TIME, CreatedAt, Id, NextCursor, Schema, Timestamp, example
from app.kernel.validation.text import VisibleLine

ServiceScope = TypeAliasType(
    "ServiceScope",
    Literal[
        "profile:read",
        "profile:write",
        "events:read",
        "events:write",
        "jobs:read",
        "jobs:write",
        "webhooks:manage",
        "introspect",
    ],
)
_EXAMPLE = {
    "id": EXAMPLE_ID,
    "client_id": EXAMPLE_ID,
    "name": "billing",
    "scopes": ["events:write", "introspect"],
    "old_secret_expires_at": None,
    "created_at": EXAMPLE_TIME,
}


class ServiceAccountRequest(Schema, json_schema_extra=example({"name": "billing", "scopes": ["events:write"]})):
    """A service account to create."""

    name: Annotated[str, VisibleLine(100), Field(examples=["billing"])] = Field(
        description="Name of the program, 1 to 100 characters."
    )
    scopes: Annotated[list[ServiceScope], Field(min_length=1, max_length=20, examples=[["events:write"]])] = Field(
        description="What its access tokens may be used for."
    )


class ServiceAccountResponse(Schema, json_schema_extra=example(_EXAMPLE)):
    """A service account without its secret."""

    id: Id = Field(description="Id of the account, which owns what the program makes.")
    client_id: str = Field(description="What the program names itself by at the token endpoint.")
    name: str = Field(description="Name of the program.")
    scopes: list[ServiceScope] = Field(description="What its access tokens may be used for.")
    old_secret_expires_at: Timestamp | None = Field(description="When the secret of before ends; null: there is none.")
    created_at: CreatedAt


class ServiceAccountCreated(
    ServiceAccountResponse,
    json_schema_extra=example(_EXAMPLE | {"client_secret": "cs_5Jk2vXq0Zb7Wc9Ye1Rf3Tg5Uh8Io4Pa6"}),
):
    """A service account with its secret, which no other answer contains."""

    client_secret: str = Field(description="The secret, which begins with `cs_`.")


class ServiceAccountPage(Schema):
    """A page of service accounts, newest first."""

    items: list[ServiceAccountResponse] = Field(description="Accounts, newest first.")
    next_cursor: NextCursor


class RotateClientSecretRequest(Schema, json_schema_extra=example({"expire_old_now": True})):
    """How to rotate a secret."""

    expire_old_now: bool = Field(
        default=False, description="Whether the old secret and its tokens end now; else it is good for a day more."
    )
