"""Errors as problems (RFC 9457), whatever raised them."""

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException

from app.kernel.errors import (
    MAX_ERRORS,
    PROBLEM_MEDIA_TYPE,
    AppError,
    BadRequest,
    Conflict,
    DeadlineExceeded,
    FieldError,
    Forbidden,
    Gone,
    HeadTooLarge,
    NotFound,
    OAuthError,
    PayloadTooLarge,
    PreconditionFailed,
    PreconditionRequired,
    RangeNotSatisfiable,
    RequestTimeout,
    TargetTooLong,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    Unprocessable,
    UnsupportedMediaType,
    escape_pointer,
)
from app.kernel.observability.telemetry import request_id_var
from app.kernel.validation.field_codes import field_code

NO_CONTENT = 204


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route whose own business can answer these statuses; the document fills them in."""
    return {status: {"content": {PROBLEM_MEDIA_TYPE: {}}} for status in statuses}


def problem_response(error: AppError) -> Response:
    """The answer that tells a caller of `error`."""
    if isinstance(error, OAuthError):
        oauth = {"error": error.oauth_code, "error_description": error.detail}
        return Response(orjson.dumps(oauth), error.status, error.headers, "application/json")
    content = error.as_problem(request_id_var.get() or "unknown")
    headers = {"Cache-Control": "no-store", **error.headers}
    return Response(orjson.dumps(content), error.status, headers, PROBLEM_MEDIA_TYPE)


def install_error_handlers(app: FastAPI) -> None:
    """Makes every answer of status 400 and above a problem (RFC 9457), whatever raised it."""

    async def on_error(request: Request, error: Exception) -> Response:
        return answer_to(app, request, error)

    for known in (AppError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(known, on_error)


def answer_to(app: FastAPI, request: Request, error: Exception) -> Response:
    """What a request gets that ended with `error`: nearly always a problem."""
    if isinstance(error, HTTPException) and error.status_code == NO_CONTENT:
        # Raised in front of a handler that can only stream.
        return Response(status_code=NO_CONTENT, headers={"Cache-Control": "no-store"})
    problem = problem_of(app, request, error)
    if request.method == "OPTIONS" and isinstance(problem, _MethodNotAllowed):
        # There is such a resource, and what it takes is the answer (RFC 9110, section 9.3.7).
        return Response(status_code=NO_CONTENT, headers=problem.headers)
    return problem_response(problem)


def problem_of(app: FastAPI, request: Request, error: Exception) -> AppError:
    """What a caller is told of `error`."""
    if isinstance(error, AppError):
        return error
    if isinstance(error, RequestValidationError):
        return Unprocessable(errors=_field_errors(error))
    if isinstance(error, HTTPException):
        return _from_http_exception(app, request, error)
    return AppError()


def _field_errors(error: RequestValidationError) -> list[FieldError]:
    return [
        FieldError(_pointer(item["loc"]), item["msg"], field_code(item["type"])) for item in error.errors()[:MAX_ERRORS]
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
    if error.status_code == 405:  # noqa: PLR2004 - the number is the name
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
    # A path without a route of its own is that of a mounted file.
    methods = methods or {"GET"}
    if "GET" in methods:
        methods.add("HEAD")
    return sorted({*methods, "OPTIONS"})


class _MethodNotAllowed(AppError):
    """The path exists; `Allow` names the methods that it takes."""

    status = 405
    code = "method_not_allowed"
    title = "Method not allowed"


# OAuth errors have a form of their own, and what is retryable is no status yet.
_CLASSES: Mapping[int, type[AppError]] = {
    error_class.status: error_class
    for error_class in (
        BadRequest,
        Unauthenticated,
        Forbidden,
        NotFound,
        _MethodNotAllowed,
        RequestTimeout,
        Conflict,
        Gone,
        PreconditionFailed,
        PayloadTooLarge,
        TargetTooLong,
        UnsupportedMediaType,
        RangeNotSatisfiable,
        Unprocessable,
        PreconditionRequired,
        HeadTooLarge,
        TooManyRequests,
        Unavailable,
        DeadlineExceeded,
    )
}


def error_class_of(status: int) -> type[AppError]:
    """The kernel's own class of a status.

    Raises:
        KeyError: no problem of ours has it.
    """
    return _CLASSES[status]
