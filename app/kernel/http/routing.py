"""Routes that refuse what is not wanted before the framework looks at it."""

import re
from collections.abc import Callable, Coroutine, Iterable, Mapping
from email.message import Message
from typing import Any, Literal
from urllib.parse import unquote_plus

from fastapi import APIRouter, Request, Response
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Form, Param
from fastapi.params import Path as PathParam
from fastapi.params import Query as QueryParam
from fastapi.routing import APIRoute
from starlette.datastructures import QueryParams
from starlette.routing import BaseRoute
from starlette.types import Scope

from app.kernel.auth import declared_permission
from app.kernel.errors import (
    MAX_ERRORS,
    FieldError,
    PayloadTooLarge,
    PreconditionFailed,
    Unprocessable,
    UnsupportedMediaType,
)
from app.kernel.http.body_limits import BodyLimits, KnownFields, check_values, model_in
from app.kernel.http.encoding import check_text
from app.kernel.http.json_input import parse_json
from app.kernel.http.openapi import reads_headers
from app.kernel.http.preconditions import excludes_any
from app.kernel.request.state import RequestState, state_of

_JSON = "application/json"
_MERGE_PATCH = "application/merge-patch+json"
_JSON_TYPE = b"application/json"
# Forms are those of OAuth, whose longest field is a token. Taking one apart costs half a microsecond a byte.
_FORM_LIMITS = BodyLimits(max_bytes=16 * 1024)
# What is longer is no media type of ours, and the standard library takes it apart in quadratic time.
_MAX_CONTENT_TYPE = 256
# More names than any route has; an address holds thousands.
_MAX_PARAMETERS = 100
# Of an unknown name that is told; longer than any of ours.
_MAX_TOLD_NAME = 64
_FORM = "application/x-www-form-urlencoded"
# What a 415 tells what it would take in (W3C Linked Data Platform, RFC 5789, RFC 9110 section 15.5.16).
_ACCEPTING = {"POST": "Accept-Post", "PATCH": "Accept-Patch"}
_SMALL_BODY = 4 * 1024
# `utf8` is not its registered name, but what many clients write.
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_IDENTITY = frozenset({b"", b"identity"})
# RFC 9110, section 12.5.3.
_NO_CODING = {"Accept-Encoding": "identity"}


(_IF_MATCH,) = reads_headers("IfMatch")["parameters"]
# What is below is called by programs that are written for it.
_API = "/v1/"


class _ParsedRequest(Request):
    """A request whose JSON body has been parsed by `parse_json` already."""

    async def json(self) -> Any:
        return state_of(self.scope).parsed_json


class StrictRoute(APIRoute):
    """A route that checks permission, then the query's names and the body's form, before the framework does.

    Outside of `/v1/` it takes any query: links to pages come with `utm_source`, documents with what keeps a cache from
    answering, and probes and scrapers with parameters that other servers know.
    """

    checks: "Checks"

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        checks = self.checks = Checks(self)
        endpoint = self.endpoint

        async def handle_strictly(request: Request) -> Response:
            state = state_of(request.scope)
            state.endpoint = endpoint
            checks.pass_or_raise(state, request.scope)
            if checks.body is None:
                return await handle(request)
            raw = request._body = await _read(request, checks.limits.max_bytes)  # noqa: SLF001 - Starlette looks here first
            if raw:
                checks.check_read(state)
            if checks.body == "form":
                _check_form(raw)
            if checks.body == "form" or not raw:
                return await handle(request)
            if state.parsed_json is None:
                state.parsed_json = checks.parse(raw)
            parsed = _ParsedRequest(request.scope, request.receive)
            parsed._body = raw  # noqa: SLF001 - FastAPI reads the body again, which Starlette keeps here
            return await handle(parsed)

        return handle_strictly


async def _read(request: Request, max_bytes: int) -> bytes:
    """Raises PayloadTooLarge."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > max_bytes:
            raise PayloadTooLarge
    return bytes(raw)


class Checks:
    """What is looked at before a request's body is read. `body` is the form it must have."""

    def __init__(self, route: APIRoute) -> None:
        permission = declared_permission(route.dependant)
        if permission is None:
            message = f"{sorted(route.methods or ())} {route.path} does not declare who may call it"
            raise RuntimeError(message)
        self._permission = permission
        fields = get_flat_params(route.dependant)
        # The fields of a query model are plain ones; no route of ours takes a header or cookie model.
        self._query_names = frozenset(
            field.alias
            for field in fields
            if isinstance(field.field_info, QueryParam) or not isinstance(field.field_info, Param)
        )
        # A list whose filters have names of the callers says how they begin (`PageQuery.open_prefix`).
        self._open_prefix = next(
            (
                prefix
                for field in route.dependant.query_params
                if (prefix := getattr(field.field_info.annotation, "open_prefix", None)) is not None
            ),
            None,
        )
        self._takes_any_query = not route.path.startswith(_API)
        self._has_path_parameters = any(isinstance(field.field_info, PathParam) for field in fields)
        self._path = route.path
        # Whether the resource can be read; asked for once the application has all of its routes.
        self._is_readable: bool | None = None
        # A guard that the client has set must not be dropped in silence (RFC 9110, section 13.1).
        self._refuses_tags = "GET" not in (route.methods or ()) and _IF_MATCH not in (
            (route.openapi_extra or {}).get("parameters", ())
        )
        self._accepting = _ACCEPTING.get(next(iter(route.methods or ())), "Accept")
        self.body: Literal["json", "form"] | None = None
        self.limits = BodyLimits()
        self._known: KnownFields | None = None
        if route.body_field is not None:
            self.body = "form" if isinstance(route.body_field.field_info, Form) else "json"
            model = model_in(route.body_field.field_info.annotation)
            self.limits = _FORM_LIMITS if self.body == "form" else getattr(model, "body_limits", self.limits)
            self._known = KnownFields(model) if model is not None else None

    def parse(self, raw: bytes) -> Any:
        """The value of a JSON body, found to cost no more than the route is worth before the model looks at it.

        Raises:
            PayloadTooLarge: it holds too many values.
            InvalidJson, Unprocessable: see `parse_json`; it is null, or has too many unknown names.
        """
        check_values(raw, self.limits)
        value = parse_json(raw)
        if value is None:
            # FastAPI takes it for a body that is not there, which is another thing where one may be left out.
            raise Unprocessable(errors=[FieldError("#", "Input should be an object", "wrong_type")])
        # In a small body they cost less than looking for them.
        if self._known is not None and len(raw) > _SMALL_BODY:
            self._known.check(value)
        return value

    def pass_or_raise(self, state: RequestState, scope: Scope) -> None:
        """Returns if the caller may call the route with an address and a body of this form; else raises an AppError."""
        self._permission.check(state)
        if self._refuses_tags:
            self._check_preconditions(state.headers, scope)
        if self._has_path_parameters:
            check_text(scope.get("raw_path") or b"", "path")
        if scope["query_string"] and not self._takes_any_query:
            _check_query(scope["query_string"], self._query_names, self._open_prefix)
        if self.body is not None:
            headers = state.headers
            length = headers.get(b"content-length", b"0")
            if length != b"0":
                self._check_content(headers, self.body)
                if length.isdigit() and int(length) > self.limits.max_bytes:
                    raise PayloadTooLarge

    def _check_preconditions(self, headers: Mapping[bytes, bytes], scope: Scope) -> None:
        """Of what is only called there is no state that a tag could name; `*` asks for no more than its being there."""
        if_match = headers.get(b"if-match")
        if if_match is not None and if_match.strip() != b"*":
            raise PreconditionFailed("This call does not depend on a state that If-Match could name.")
        if_none_match = headers.get(b"if-none-match")
        if if_none_match is not None and excludes_any(if_none_match):
            if self._is_readable is None:
                self._is_readable = _is_readable(scope["app"].routes, self._path)
            if self._is_readable:
                raise PreconditionFailed("The resource is there, which `If-None-Match: *` says it must not be.")

    def check_read(self, state: RequestState) -> None:
        """Returns if a body that was read, and is not empty, has the route's form. Where its length was announced,
        that has been found before it was read; where nothing comes, there is no form to refuse (RFC 9110, section 8.3).
        """
        if self.body is not None and b"content-length" not in state.headers:
            self._check_content(state.headers, self.body)

    def _check_content(self, headers: Mapping[bytes, bytes], body: Literal["json", "form"]) -> None:
        # Names of codings have no case (RFC 9110, section 8.4.1), and an empty list names none.
        if headers.get(b"content-encoding", b"").lower() not in _IDENTITY:
            raise UnsupportedMediaType("Send the body without a content coding.", headers=_NO_CODING)
        if not (body == "json" and headers.get(b"content-type") == _JSON_TYPE):
            self._check_media_type(headers, body)

    def _check_media_type(self, headers: Mapping[bytes, bytes], body: Literal["json", "form"]) -> None:
        header = headers.get(b"content-type")
        if header is None:
            raise self._unsupported("The request has a body but no Content-Type.", body)
        if len(header) > _MAX_CONTENT_TYPE:
            raise self._unsupported("The Content-Type is too long.", body)
        message = Message()
        message["content-type"] = header.decode("latin-1")
        media_type = message.get_content_type()
        if body == "form":
            accepted = media_type == _FORM
        else:
            # Of the types that end in `+json` some mean something else, such as a JSON Patch (RFC 6902).
            accepted = media_type == _JSON or (media_type == _MERGE_PATCH and self._accepting == "Accept-Patch")
        if not accepted or message.get_content_charset("utf-8") not in _CHARSETS:
            raise self._unsupported(f"Send {_FORM if body == 'form' else _JSON} in UTF-8.", body)

    def _unsupported(self, detail: str, body: Literal["json", "form"]) -> UnsupportedMediaType:
        accepted = _FORM if body == "form" else _JSON
        if self._accepting == "Accept-Patch":
            accepted += f", {_MERGE_PATCH}"
        return UnsupportedMediaType(detail, headers={self._accepting: accepted})


class Router(APIRouter):
    """The router class of all modules."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            route_class=StrictRoute, redirect_slashes=False, generate_unique_id_function=operation_id, **options
        )


def reserve_literal_paths(routes: Iterable[BaseRoute]) -> None:
    """Keeps templates from matching a path that a route has without parameters, which owns all methods of it (OpenAPI).

    Otherwise `GET /jobs/bulk` would be a job with the id `bulk`, and the `Allow` of that path would name GET.
    """
    own = [route for route in routes if isinstance(route, StrictRoute)]
    literals = {route.path for route in own if not route.param_convertors}
    for route in own:
        taken = sorted(path for path in literals if route.path_regex.match(path)) if route.param_convertors else []
        if taken:
            others = "|".join(map(re.escape, taken))
            route.path_regex = re.compile(f"^(?!(?:{others})$){route.path_regex.pattern.removeprefix('^')}")


def _is_readable(routes: Iterable[BaseRoute], path: str) -> bool:
    """Whether a resource with this template is one that can be read."""
    return any(
        isinstance(route, APIRoute) and route.path == path and "GET" in (route.methods or ()) for route in routes
    )


def _check_query(raw: bytes, known: frozenset[str], open_prefix: str | None) -> None:
    check_text(raw, "query")
    if raw.count(b"&") >= _MAX_PARAMETERS:
        raise Unprocessable(errors=[FieldError("query", "There are too many query parameters.", "too_many_parameters")])
    names = [name for name, _ in QueryParams(raw).multi_items()]
    if open_prefix is not None:
        known |= {name for name in names if name.startswith(open_prefix) and name != open_prefix}
    errors = [
        FieldError(f"query:{name[:_MAX_TOLD_NAME]}", "There is no such query parameter.", "unknown_parameter")
        for name in dict.fromkeys(names)
        if name not in known
    ]
    errors += [
        FieldError(f"query:{name}", "The parameter is given more than once.", "repeated_parameter")
        for name in sorted(known)
        if names.count(name) > 1
    ]
    if errors:
        raise Unprocessable(errors=errors[:MAX_ERRORS])


def _check_form(raw: bytes) -> None:
    """Lets a form pass that says each thing once: of two values, two readers might take different ones."""
    seen: set[str] = set()
    for field in raw.split(b"&"):
        name = unquote_plus(field.partition(b"=")[0].decode("latin-1"))
        if name in seen:
            raise Unprocessable(
                errors=[FieldError("#", "The form names a parameter more than once.", "repeated_parameter")]
            )
        if name:
            seen.add(name)


def operation_id(route: APIRoute) -> str:
    """The OpenAPI operation id: the name of the handler."""
    return route.name
