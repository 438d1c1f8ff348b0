"""The types that all request and response models are made of."""

import re
from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from fastapi import Path, Query
from pydantic import (
    MISSING,
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    Strict,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError
from typing_extensions import TypeAliasType

from app.kernel.clock import OUT_OF_RANGE, in_utc
from app.kernel.errors import MAX_ERRORS, problem_classes
from app.kernel.http.body_limits import BodyLimits
from app.kernel.validation.addresses import MAX_EMAIL_LENGTH, parse_email
from app.kernel.validation.field_codes import FieldErrorCode

# What the examples of the document say.
EXAMPLE_ID = "0198f000-0000-7000-8000-000000000000"
EXAMPLE_TIME = "2026-01-31T12:00:00.000000Z"

_DIGITS = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_DATE_AND_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]", re.ASCII)


class Schema(BaseModel):
    """Base of all request and response models: no unknown fields, no conversion between types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    # Of a request body; a model that holds more than a few dozen values sets its own.
    body_limits: ClassVar[BodyLimits] = BodyLimits()


def example(body: dict[str, Any]) -> Any:
    """`json_schema_extra=` of a request model: a body that it takes."""
    return {"examples": [body]}


def _refuse_numbers(value: Any) -> Any:
    # pydantic would read a number as seconds since 1970.
    if isinstance(value, datetime) or (isinstance(value, str) and _DATE_AND_TIME.match(value)):
        return value
    raise PydanticCustomError("invalid_datetime", "Not a date and time as in RFC 3339.")


def _to_utc(value: datetime) -> datetime:
    try:
        return in_utc(value)
    except ValueError as error:
        raise PydanticCustomError("invalid_datetime", OUT_OF_RANGE) from error


# Strictness is lifted for these two because JSON has no type of its own for them.
Id = Annotated[UUID, Strict(strict=False)]
Timestamp = Annotated[AwareDatetime, Strict(strict=False), BeforeValidator(_refuse_numbers), AfterValidator(_to_utc)]


def path_name(description: str) -> Any:
    """A part of the path that is a name. Its pattern is only documented: what is named otherwise is not found, and a
    percent-encoded sign would make the path ambiguous.
    """
    return Path(description=description, json_schema_extra={"pattern": "^[A-Za-z0-9._~-]{1,255}$"})


def _check_email(value: str) -> str:
    try:
        return parse_email(value).text
    except ValueError as error:
        raise PydanticCustomError("invalid_email", "Not an e-mail address.") from error


CreatedAt = Annotated[Timestamp, Field(description="When it was created.")]
# In answers: an address that was checked when it came in.
EmailText = Annotated[str, Field(json_schema_extra={"format": "email"})]
NextCursor = Annotated[
    str | None,
    Field(
        description="Send it as `cursor` to get the next page; null: this is the last page. A page of a filtered list "
        "may hold fewer items than `limit`, or none, although more follow."
    ),
]

# Wherever an address comes in that mail is to be sent to; what is stored is the answer of `parse_email`.
Email = Annotated[
    str,
    Field(
        min_length=3,
        max_length=MAX_EMAIL_LENGTH,
        examples=["ada@example.com"],
        json_schema_extra={"format": "email"},
    ),
    AfterValidator(_check_email),
]


def _refuse_loose_numbers(value: Any) -> Any:
    """What Python reads as a number, but that no client writes into an address: spaces, signs, underscores."""
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        raise PydanticCustomError("invalid_number", "Not a whole number.")
    return value


class PageQuery(BaseModel):
    """The query of every list. Subclass it to add filters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # How the names of further filters begin, which the model takes as its extra fields; None: there are none.
    open_prefix: ClassVar[str | None] = None

    limit: Annotated[int, BeforeValidator(_refuse_loose_numbers)] = Field(
        20, ge=1, le=100, description="Maximum number of items in a page."
    )
    cursor: str | None = Field(None, min_length=1, max_length=1024, description="`next_cursor` of the previous page.")


PageQueryDep = Annotated[PageQuery, Query()]


class _ProblemCodes:
    """The enum of a text that is a code of a problem; made with the document, when all errors have been declared."""

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {
            "type": "string",
            "enum": sorted({error_class.code for error_class in problem_classes()}),
            "description": "What went wrong. `/problems` says what each code means; later versions may add codes.",
        }


ProblemCode = TypeAliasType("ProblemCode", Annotated[str, _ProblemCodes()])


class ProblemField(Schema):
    """One refused field or parameter of a request."""

    pointer: str = Field(
        description="Where it is: a JSON pointer as a URI fragment (RFC 6901) for the body, such as `#/items/0/name`, "
        "or `query:limit`, `path:job_id`, `header:If-Match`.",
    )
    detail: str = Field(description="What is wrong, in prose.")
    code: FieldErrorCode = Field(description="What is wrong, as a machine-readable code.")


class Problem(
    Schema,
    json_schema_extra=example(
        {
            "type": "/problems/validation_failed",
            "title": "Invalid request",
            "status": 422,
            "detail": "Invalid request",
            "instance": "urn:onehop:request:0198f000-0000-7000-8000-000000000000",
            "code": "validation_failed",
            "request_id": "0198f000-0000-7000-8000-000000000000",
            "errors": [{"pointer": "#/kind", "detail": "Field required", "code": "missing"}],
        }
    ),
):
    """An error (RFC 9457). A program branches on `code`; `/problems` lists every code with its meaning."""

    type: str = Field(
        description="Reference to the page of the code, relative to the service.",
        json_schema_extra={"format": "uri-reference"},
    )
    title: str = Field(description="What the code means; the same for every problem with this code.")
    status: int = Field(ge=400, le=599, description="The HTTP status.")
    detail: str = Field(description="What happened in this case and what to do, in prose.")
    instance: str = Field(description="URN of this occurrence.", json_schema_extra={"format": "uri"})
    code: ProblemCode = Field(description="What went wrong, as a machine-readable code.")
    request_id: str = Field(description="The `X-Request-ID` of the answer, by which the operator finds it in the logs.")
    errors: list[ProblemField] | MISSING = Field(
        MISSING, description=f"The refused fields and parameters, the first {MAX_ERRORS} of them."
    )
