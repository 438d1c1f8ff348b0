"""Routes that refuse what is not wanted before the framework looks at it."""

import re
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Request, Response
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Form, Param
from fastapi.params import Path as PathParam
from fastapi.params import Query as QueryParam
from fastapi.routing import APIRoute

from app.kernel.auth import declared_permission
from app.kernel.errors import (
    BadRequest,
    FieldError,
    Unprocessable,
    UnsupportedMediaType,
)
from app.kernel.http.json_input import MAX_ERRORS, parse_json

_INVALID_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class InvalidEncoding(BadRequest):
    code = "invalid_encoding"
    title = "The address is not valid percent-encoded UTF-8"


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


def operation_id(route: APIRoute) -> str:
    """The OpenAPI operation id: the name of the handler."""
    return route.name
