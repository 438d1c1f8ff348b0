"""API keys."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypeAliasType

from app.kernel.http import EXAMPLE_ID, EXAMPLE_TIME, CreatedAt, Id, NextCursor, Schema, Timestamp, example
from app.kernel.validation.text import VisibleLine

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
_EXAMPLE_API_KEY = {
    "id": EXAMPLE_ID,
    "name": "nightly import",
    "scopes": ["events:write"],
    "expires_at": None,
    "last_used_at": None,
    "created_at": EXAMPLE_TIME,
}


class ApiKeyRequest(Schema, json_schema_extra=example({"name": "nightly import", "scopes": ["events:write"]})):
    """An API key to create."""

    name: Annotated[str, VisibleLine(100), Field(examples=["nightly import"])] = Field(
        description="Name of the key for the list, 1 to 100 characters."
    )
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=20, examples=[["events:write"]])] = Field(
        description="What the key may do; each must be a scope of the caller."
    )
    expires_at: Timestamp | None = Field(None, description="When the key ends; absent or null: never.")


class ApiKeyResponse(Schema, json_schema_extra=example(_EXAMPLE_API_KEY)):
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
    ApiKeyResponse, json_schema_extra=example(_EXAMPLE_API_KEY | {"key": "ak_5Jk2vXq0Zb7Wc9Ye1Rf3Tg5Uh8Io4Pa6"})
):
    """An API key with its secret, which no other answer contains."""

    key: str = Field(description="The secret, which begins with `ak_`, to send as `Authorization: Bearer`.")


class ApiKeyList(Schema):
    """A page of API keys, newest first."""

    items: list[ApiKeyResponse] = Field(description="Keys, newest first.")
    next_cursor: NextCursor
