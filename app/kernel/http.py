"""The HTTP edge that all routers share: strict input, answers from bytes, problems, entity tags.

Input is refused before it reaches a model: JSON that is not RFC 8259 (NaN, duplicate keys, invalid UTF-8), text that
Postgres cannot store (NUL, lone surrogates), unknown query parameters, another media type. Output is built from our own
records with orjson; the response models only document it, and the tests hold the two together.
"""

import json
import math
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from email.message import Message
from hashlib import blake2b
from typing import Annotated, Any, Literal, cast
from urllib.parse import unquote_to_bytes
from uuid import UUID

import orjson
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.dependencies.utils import get_flat_params
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form, Param
from fastapi.params import Path as PathParam
from fastapi.params import Query as QueryParam
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, Strict
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

from app.kernel.auth import declared_permission
from app.kernel.errors import (
    AppError,
    BadRequest,
    FieldError,
    OAuthError,
    PayloadTooLarge,
    Unprocessable,
    UnsupportedMediaType,
)
from app.kernel.telemetry import request_id_var

PROBLEM_MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 20
# More than any model of ours takes, and less than what the parsers and serializers behind this can bear.
MAX_JSON_DEPTH = 64
_DATE_AND_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]", re.ASCII)
_INVALID_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_JSON_OPTIONS = orjson.OPT_UTC_Z
_ETAG_BYTES = 12


class InvalidJson(BadRequest):
    code = "invalid_json"
    title = "The request body is not valid JSON"


class InvalidEncoding(BadRequest):
    code = "invalid_encoding"
    title = "The address is not valid percent-encoded UTF-8"


class Schema(BaseModel):
    """Base of all request and response models: no unknown fields, no conversion between types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _refuse_numbers(value: Any) -> Any:
    # pydantic would read a number as seconds since 1970.
    if isinstance(value, datetime) or (isinstance(value, str) and _DATE_AND_TIME.match(value)):
        return value
    raise PydanticCustomError("datetime_type", "Not a date and time as in RFC 3339.")


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise PydanticCustomError("datetime_range", "Not between the years 1 and 9999 in UTC.") from error


# Strictness is lifted for these two because JSON has no type of its own for them.
Id = Annotated[UUID, Strict(strict=False)]
Timestamp = Annotated[AwareDatetime, Strict(strict=False), BeforeValidator(_refuse_numbers), AfterValidator(_to_utc)]


class PageQuery(BaseModel):
    """The query of every list. Subclass it to add filters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int = Field(20, ge=1, le=100, description="Items of one page.")
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


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route for these statuses."""
    return {
        status: {
            "model": Problem,
            "description": _TITLES[status],
            "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


def problem_response(error: AppError) -> Response:
    """The answer that tells a caller of `error`."""
    if isinstance(error, OAuthError):
        oauth = {"error": error.oauth_code, "error_description": error.detail}
        return Response(orjson.dumps(oauth), error.status, error.headers, "application/json")
    request_id = request_id_var.get() or "unknown"
    content: dict[str, Any] = {
        "type": f"/problems/{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail or error.title,
        "instance": f"urn:onehop:request:{request_id}",
        "code": error.code,
        "request_id": request_id,
    }
    if error.errors:
        content["errors"] = error.errors
    headers = {"Cache-Control": "no-store", **error.headers}
    return Response(orjson.dumps(content), error.status, headers, PROBLEM_MEDIA_TYPE)


def dump_json(content: Any) -> bytes:
    """`content` as JSON: dataclasses, msgspec-free; aware datetimes end in `Z`; `orjson.Fragment` passes through."""
    return orjson.dumps(content, default=_encode, option=_JSON_OPTIONS)


def json_response(
    content: Any,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    etag: str | None = None,
) -> Response:
    """An answer whose body is `content` as JSON. `etag` is a strong entity tag, quotes included."""
    response = Response(dump_json(content), status, headers, "application/json")
    if etag is not None:
        response.headers["ETag"] = etag
    return response


def json_fragment(text: str) -> orjson.Fragment:
    """JSON text from Postgres, to be put into an answer as it is."""
    return orjson.Fragment(text)


def etag_of(*parts: object) -> str:
    """A strong entity tag of what identifies a representation, such as an id and its version."""
    digest = blake2b("\0".join(map(str, parts)).encode(), digest_size=_ETAG_BYTES).hexdigest()
    return f'"{digest}"'


def body_etag(body: bytes) -> bytes:
    """A strong entity tag of an answer's bytes."""
    return b'"' + blake2b(body, digest_size=_ETAG_BYTES).hexdigest().encode() + b'"'


def if_match(request: Request) -> frozenset[str] | None:
    """The tags of `If-Match`; None when it is absent or `*`, so that there is nothing to compare."""
    value = request.headers.get("if-match")
    if value is None or value.strip() == "*":
        return None
    return frozenset(tag.strip() for tag in value.split(","))


def matches_any(if_none_match: bytes, etag: bytes) -> bool:
    """Whether `If-None-Match` names `etag`, by the weak comparison of RFC 9110, section 13.1.2."""
    if if_none_match == etag:
        return True
    if if_none_match.strip() == b"*":
        return True
    return any(tag.strip().removeprefix(b"W/") == etag for tag in if_none_match.split(b","))


def _encode(value: Any) -> Any:
    # asyncpg's UUID is a subclass, which orjson does not take by itself.
    if isinstance(value, UUID | Decimal):
        return str(value)
    if isinstance(value, frozenset | set | tuple):
        return sorted(value)
    message = f"{type(value).__name__} has no JSON form here"
    raise TypeError(message)


def parse_json(body: bytes) -> Any:
    """The value of a JSON text, by RFC 8259 with nothing tolerated that could be read in two ways.

    Raises:
        InvalidJson: it is not UTF-8, not JSON, nested too deeply, holds a number that is not finite, or names a key
        twice. Unprocessable: a string holds NUL or a lone surrogate, which neither UTF-8 nor Postgres can hold.
    """
    try:
        text = body.decode("utf-8-sig")
        value = _decoder.decode(text)
    except RecursionError as error:
        raise InvalidJson("The JSON is nested too deeply.") from error
    except ValueError as error:
        raise InvalidJson(None if isinstance(error, json.JSONDecodeError) else _reason(error)) from error
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _is_too_deep(value):
        raise InvalidJson("The JSON is nested too deeply.")
    if "\\u" in text:
        errors = list(_unstorable_text(value, "#"))
        if errors:
            raise Unprocessable("Some text cannot be stored.", errors=errors[:MAX_ERRORS])
    return value


class _RefusedJson(ValueError):
    """JSON that parses but means nothing definite."""


def _reason(error: ValueError) -> str | None:
    return str(error) if isinstance(error, _RefusedJson) else None


def _refuse_constant(_: str) -> Any:
    raise _RefusedJson("A number is not finite.")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedJson("A number is not finite.")
    return value


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _RefusedJson("An object names a key twice.")
    return value


_decoder = json.JSONDecoder(
    object_pairs_hook=_unique_pairs, parse_float=_finite_float, parse_constant=_refuse_constant, strict=True
)


def _is_too_deep(value: Any) -> bool:
    # Level by level: what is deep enough would break a function that calls itself.
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


def _unstorable_text(value: Any, pointer: str) -> Iterable[FieldError]:
    if isinstance(value, str):
        if "\0" in value or not _is_encodable(value):
            yield FieldError(pointer, "The text holds NUL or a lone surrogate.", "invalid_text")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unstorable_text(item, f"{pointer}/{index}")
    elif isinstance(value, dict):
        for key, item in value.items():
            if "\0" in key or not _is_encodable(key):
                yield FieldError(pointer, "A key holds NUL or a lone surrogate.", "invalid_text")
            else:
                yield from _unstorable_text(item, f"{pointer}/{escape_pointer(key)}")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def escape_pointer(part: object) -> str:
    """One part of a JSON pointer (RFC 6901, section 3)."""
    return str(part).replace("~", "~0").replace("/", "~1")


class _ParsedRequest(Request):
    """A request whose JSON body has been parsed by `parse_json` already."""

    async def json(self) -> Any:
        return self.state.parsed_json


class StrictRoute(APIRoute):
    """A route that checks permission, then the query's names and the body's form, before the framework does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        permission = declared_permission(self.dependant)
        if permission is None:
            message = f"{sorted(self.methods or ())} {self.path} does not declare who may call it"
            raise RuntimeError(message)
        fields = get_flat_params(self.dependant)
        # The fields of a query model are plain ones; no route of ours takes a header or cookie model.
        query_names = frozenset(
            field.alias
            for field in fields
            if isinstance(field.field_info, QueryParam) or not isinstance(field.field_info, Param)
        )
        has_path_parameters = any(isinstance(field.field_info, PathParam) for field in fields)
        body = _body_kind(self)

        async def handle_strictly(request: Request) -> Response:
            permission.check(request)
            scope = request.scope
            if has_path_parameters:
                _check_encoding(scope.get("raw_path") or b"", "path")
            if scope["query_string"]:
                _check_query(scope["query_string"], request, query_names)
            if body is None:
                return await handle(request)
            _check_media_type(request, body)
            if body == "form":
                return await handle(request)
            raw = await request.body()
            if not raw:
                return await handle(request)
            request.state.parsed_json = parse_json(raw)
            parsed = _ParsedRequest(scope, request.receive)
            parsed._body = raw  # noqa: SLF001 - FastAPI reads the body again, which Starlette keeps here
            return await handle(parsed)

        return handle_strictly


class Router(APIRouter):
    """The router class of all modules."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            route_class=StrictRoute, redirect_slashes=False, generate_unique_id_function=operation_id, **options
        )


def _body_kind(route: APIRoute) -> Literal["json", "form"] | None:
    if route.body_field is None:
        return None
    return "form" if isinstance(route.body_field.field_info, Form) else "json"


def _check_encoding(raw: bytes, place: str) -> None:
    if b"%" not in raw:
        return
    if _INVALID_PERCENT.search(raw):
        raise InvalidEncoding
    try:
        text = unquote_to_bytes(raw.replace(b"+", b" ")).decode()
    except UnicodeDecodeError as error:
        raise InvalidEncoding from error
    if "\0" in text:
        raise Unprocessable(errors=[FieldError(place, "The text holds NUL.", "invalid_text")])


def _check_query(raw: bytes, request: Request, known: frozenset[str]) -> None:
    _check_encoding(raw, "query")
    names = [name for name, _ in request.query_params.multi_items()]
    errors = [
        FieldError("query", "There is no such query parameter.", "unknown_parameter")
        for name in names
        if name not in known
    ]
    errors += [
        FieldError(f"query:{name}", "The parameter is given more than once.", "repeated_parameter")
        for name in sorted(known)
        if names.count(name) > 1
    ]
    if errors:
        raise Unprocessable(errors=errors[:MAX_ERRORS])


def _check_media_type(request: Request, body: Literal["json", "form"]) -> None:
    header = request.headers.get("content-type")
    if header is None:
        length = request.headers.get("content-length")
        if length in (None, "0") and "transfer-encoding" not in request.headers:
            return
        raise UnsupportedMediaType("The request has a body but no Content-Type.")
    message = Message()
    message["content-type"] = header
    media_type = message.get_content_type()
    if body == "form":
        accepted = media_type == "application/x-www-form-urlencoded"
    else:
        accepted = media_type == "application/json" or (
            media_type.startswith("application/") and media_type.endswith("+json")
        )
    charset = message.get_content_charset("utf-8")
    if not accepted or charset not in ("utf-8", "us-ascii"):
        wanted = "application/x-www-form-urlencoded" if body == "form" else "application/json"
        raise UnsupportedMediaType(f"Send {wanted} in UTF-8.")


def install_error_handlers(app: FastAPI) -> None:
    """Makes every answer of status 400 and above a problem (RFC 9457), whoever raised it."""

    async def on_app_error(_: Request, error: Exception) -> Response:
        return problem_response(cast("AppError", error))

    async def on_invalid_request(_: Request, error: Exception) -> Response:
        return problem_response(Unprocessable(errors=_field_errors(cast("RequestValidationError", error))))

    async def on_http_exception(request: Request, error: Exception) -> Response:
        return problem_response(_from_http_exception(app, request, cast("HTTPException", error)))

    async def on_failure(_: Request, __: Exception) -> Response:
        return problem_response(AppError())

    app.add_exception_handler(AppError, on_app_error)
    app.add_exception_handler(RequestValidationError, on_invalid_request)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_failure)


def _field_errors(error: RequestValidationError) -> list[FieldError]:
    return [
        FieldError(_pointer(item["loc"]), item["msg"], str(item["type"]).replace(".", "_"))
        for item in error.errors()[:MAX_ERRORS]
    ]


def _pointer(location: tuple[int | str, ...]) -> str:
    place, *path = location
    if place == "body":
        return "#" + "".join(f"/{escape_pointer(part)}" for part in path)
    return f"{place}:{'.'.join(map(str, path))}" if path else str(place)


def _from_http_exception(app: FastAPI, request: Request, error: HTTPException) -> AppError:
    if error.status_code == 413:  # noqa: PLR2004 - the framework's own body limit
        return PayloadTooLarge()
    known = _CLASSES.get(error.status_code, AppError)
    if error.status_code == 405:  # noqa: PLR2004
        headers = {"Allow": ", ".join(_allowed_methods(app, request))}
    else:
        headers = dict(error.headers or {})
    return known(headers=headers)


def _allowed_methods(app: FastAPI, request: Request) -> list[str]:
    """All methods of the path; the router itself names only those of the first route that matches."""
    path = request.scope["path"]
    methods: set[str] = set()
    for context in iter_route_contexts(app.routes):
        if context.methods and context.path_regex.match(path):
            methods |= context.methods
    if "GET" in methods:
        methods.add("HEAD")
    return sorted(methods)


class _MethodNotAllowed(AppError):
    status = 405
    code = "method_not_allowed"
    title = "This resource does not take this method"


def _error_classes() -> dict[int, type[AppError]]:
    classes: dict[int, type[AppError]] = {405: _MethodNotAllowed}
    for error_class in AppError.__subclasses__():
        if error_class.__module__ == AppError.__module__:
            classes.setdefault(error_class.status, error_class)
    return classes


_CLASSES = _error_classes()
_TITLES: Mapping[int, str] = {
    429: "The caller's quota is used up",
    503: "The service cannot answer at the moment",
    504: "The request took too long",
} | {status: error_class.title for status, error_class in _CLASSES.items() if "title" in vars(error_class)}


def operation_id(route: APIRoute) -> str:
    """The OpenAPI operation id: the name of the handler."""
    return route.name
