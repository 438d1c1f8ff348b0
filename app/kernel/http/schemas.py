"""The types that all request and response models are made of."""

import re
from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from fastapi import Path, Query
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, Strict
from pydantic_core import PydanticCustomError

from app.kernel.addresses import MAX_EMAIL_LENGTH, parse_email
from app.kernel.clock import OUT_OF_RANGE, in_utc
from app.kernel.http.body_limits import BodyLimits

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
    raise PydanticCustomError("datetime_type", "Not a date and time as in RFC 3339.")


def _to_utc(value: datetime) -> datetime:
    try:
        return in_utc(value)
    except ValueError as error:
        raise PydanticCustomError("datetime_range", OUT_OF_RANGE) from error


# Strictness is lifted for these two because JSON has no type of its own for them.
Id = Annotated[UUID, Strict(strict=False)]
# Only documented: what is named otherwise is not found. A percent-encoded sign would make the path ambiguous.
PathName = Annotated[str, Path(json_schema_extra={"pattern": "^[A-Za-z0-9._~-]{1,255}$"})]
Timestamp = Annotated[AwareDatetime, Strict(strict=False), BeforeValidator(_refuse_numbers), AfterValidator(_to_utc)]


def _check_email(value: str) -> str:
    try:
        return parse_email(value).text
    except ValueError as error:
        raise PydanticCustomError("invalid_email", "Not an e-mail address.") from error


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
    """What Python reads as a number, but nobody writes into an address: spaces, signs, underscores."""
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        raise PydanticCustomError("int_parsing", "Not a whole number.")
    return value


class PageQuery(BaseModel):
    """The query of every list. Subclass it to add filters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: Annotated[int, BeforeValidator(_refuse_loose_numbers)] = Field(
        20, ge=1, le=100, description="Items of one page."
    )
    cursor: str | None = Field(None, min_length=1, max_length=1024, description="`next_cursor` of the page before.")


PageQueryDep = Annotated[PageQuery, Query()]


class ProblemField(Schema):
    """One refused place of a request."""

    pointer: str
    detail: str
    code: str


class Problem(Schema):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str | None = None
    instance: str
    code: str
    request_id: str
    errors: list[ProblemField] | None = None
