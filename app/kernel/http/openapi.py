"""The parts of the OpenAPI document that follow from what every route goes through: problems, headers, security.

A route names only what its own business can answer; what the layers and `StrictRoute` can answer is added here. The
document is written for generators of clients too: what some of them stumble over is written otherwise (ADR 0043).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.kernel.auth import BEARER_SCHEME, declared_permission
from app.kernel.errors import PROBLEM_MEDIA_TYPE
from app.kernel.http.problems import error_class_of
from app.kernel.http.schemas import EXAMPLE_ID, Problem, Schema
from app.kernel.oauth_errors import FAULTS_OF_REQUEST
from app.kernel.observability.probes import PROBE_PATHS

_FIRST_ERROR = 400
# Answers that carry a representation, or stand for one, and so its tag.
_TAGGED = frozenset({200, 206, 304})
_REFERENCE = "#/components/schemas/{model}"

_PARAMETERS: dict[str, dict[str, Any]] = {
    "IfMatch": {
        "name": "If-Match",
        "in": "header",
        "description": "Change the resource only if its `ETag` is still this one; else 412.",
        "schema": {"type": "string"},
        "example": '"0198f00000007000800000000000000-3"',
    },
    "IfNoneMatch": {
        "name": "If-None-Match",
        "in": "header",
        "description": "Answer 304 without a body if the `ETag` is still this one.",
        "schema": {"type": "string"},
        "example": '"8f14e45fceea167a5a36dedd"',
    },
    "IfRange": {
        "name": "If-Range",
        "in": "header",
        "description": "Answer a part only if the file's `ETag` is still this one.",
        "schema": {"type": "string"},
    },
    "Range": {
        "name": "Range",
        "in": "header",
        "description": "One range of bytes (RFC 9110, section 14); anything else is ignored.",
        "schema": {"type": "string"},
        "example": "bytes=0-1023",
    },
    "Prefer": {
        "name": "Prefer",
        "in": "header",
        "description": "`wait=N` answers once the job is finished, or after N seconds, at most 30 (RFC 7240).",
        "schema": {"type": "string"},
        "example": "wait=10",
    },
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "One effect and one answer for 24 hours, however often the request comes with this key.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"},
    },
    "LastEventId": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "`id` of the last event that arrived; the stream goes on behind it.",
        "schema": {"type": "string"},
    },
    "WebhookId": {
        "name": "webhook-id",
        "in": "header",
        "required": True,
        "description": "Id of the event, the same in every attempt. Handle each id once.",
        "schema": {"type": "string", "format": "uuid"},
    },
    "WebhookTimestamp": {
        "name": "webhook-timestamp",
        "in": "header",
        "required": True,
        "description": "When this attempt was made, in seconds since 1970. Refuse what is older than five minutes.",
        "schema": {"type": "integer"},
    },
    "WebhookSignature": {
        "name": "webhook-signature",
        "in": "header",
        "required": True,
        "description": "One or two signatures, separated by a space: `v1,` and the base64 of the HMAC-SHA256 of "
        "`{webhook-id}.{webhook-timestamp}.{body}` by the secret of the endpoint.",
        "schema": {"type": "string"},
    },
}
ReadHeader = Literal["IfMatch", "IfNoneMatch", "IfRange", "Range", "Prefer", "IdempotencyKey", "LastEventId"]
_WEBHOOK_HEADERS = ("WebhookId", "WebhookTimestamp", "WebhookSignature")

_HEADERS: dict[str, dict[str, Any]] = {
    "RequestId": {
        "description": "The request's own id, or one made for it; it finds the request in the logs.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    },
    "ETag": {
        "description": "A strong tag of this representation.",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[^"]+"$'},
    },
    "Location": {
        "description": "Where the resource is.",
        "required": True,
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "RetryAfter": {
        "description": "Seconds after which to try again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "RateLimit": {
        "description": "Units of the quota that are left, and how many seconds they last at its rate "
        "(draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string"},
        "example": '"caller";r=119000;t=60',
    },
    "RateLimitPolicy": {
        "description": "The quota: units in a window of seconds.",
        "schema": {"type": "string"},
        "example": '"caller";q=120000;w=60',
    },
    "Challenge": {
        "description": "How to authenticate (RFC 6750, section 3).",
        "required": True,
        "schema": {"type": "string"},
    },
    "Replayed": {
        "description": "`true` on an answer that was stored with its `Idempotency-Key`.",
        "schema": {"type": "string", "enum": ["true"]},
    },
}
_HEADER_NAMES = {
    "RequestId": "X-Request-ID",
    "ETag": "ETag",
    "Location": "Location",
    "RetryAfter": "Retry-After",
    "RateLimit": "RateLimit",
    "RateLimitPolicy": "RateLimit-Policy",
    "Challenge": "WWW-Authenticate",
    "Replayed": "Idempotent-Replayed",
}
_QUOTA_HEADERS = ("RateLimit", "RateLimitPolicy")
_HEADERS_OF_STATUS = {401: ("Challenge",), 429: ("RetryAfter",), 503: ("RetryAfter",), 504: ("RetryAfter",)}


def reads_headers(*names: ReadHeader) -> dict[str, Any]:
    """`openapi_extra=` of a route that reads these headers."""
    return {"parameters": [{"$ref": f"#/components/parameters/{name}"} for name in names]}


def takes_token() -> dict[str, Any]:
    """`openapi_extra=` of a public route that looks at an access token where there is one."""
    return {"security": [{BEARER_SCHEME: []}, {}]}


def located(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route whose answers of these statuses carry `Location`."""
    return {status: {"headers": _references("Location")} for status in statuses}


def make_openapi(app: FastAPI, webhooks: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """The whole document of an application. `webhooks` are the bodies that it sends, by their type."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version=app.openapi_version,
        description=app.description,
        contact=app.contact,
        license_info=app.license_info,
        servers=app.servers or [{"url": "/"}],
        tags=app.openapi_tags,
        routes=app.routes,
    )
    components = document.setdefault("components", {})
    used: set[int] = set()
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods or ():
                used |= _complete(document["paths"][route.path_format][method.lower()], route)
    schemas = components.setdefault("schemas", {})
    # StrictRoute answers problems where FastAPI would answer these.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    models: list[type[BaseModel]] = [Problem, *webhooks.values()]
    made = models_json_schema([(model, "serialization") for model in models], ref_template=_REFERENCE)[1]
    schemas.update(made["$defs"])
    # A problem may have members of its own kind (RFC 9457, section 3.2).
    del schemas["Problem"]["additionalProperties"]
    document["webhooks"] = {name: {"post": _webhook(name, model)} for name, model in webhooks.items()}
    components["parameters"] = _PARAMETERS
    components["headers"] = _HEADERS
    components["responses"] = {_response_name(status): _problem(status) for status in sorted(used)}
    components["schemas"] = dict(sorted(schemas.items()))
    examples = dict(_examples(Schema))
    for name, schema in schemas.items():
        if name in examples:
            schema["examples"] = examples[name]
        for part in _properties(schema):
            _write_for_generators(part)
    return document


def _examples(model: type[BaseModel]) -> Iterator[tuple[str, list[Any]]]:
    """The examples of a model and its subclasses by name; FastAPI takes the nulls out of them."""
    extra = model.model_config.get("json_schema_extra")
    if isinstance(extra, dict) and isinstance(found := extra.get("examples"), list):
        yield model.__name__, found
    for subclass in model.__subclasses__():
        yield from _examples(subclass)


def _webhook(name: str, model: type[BaseModel]) -> dict[str, Any]:
    """The request that an endpoint receives for events of a type."""
    summary = (model.__doc__ or "").strip()
    return {
        "operationId": f"receive_{name.replace('.', '_')}",
        "summary": summary.rstrip("."),
        "description": f"{summary} Sent to each endpoint that asks for the type.",
        # Not that of the routes below /v1/webhooks, because some generators make a file of each tag and part.
        "tags": ["webhook-events"],
        "security": [],
        # Clients do not call it. openapi-generator would write a call all the same, which in Python is no valid code.
        "x-internal": True,
        "parameters": [{"$ref": f"#/components/parameters/{header}"} for header in _WEBHOOK_HEADERS],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}},
        },
        "responses": {
            "2XX": {"description": "The event has arrived; it is not sent again."},
            "410": {"description": "The endpoint is gone; it is disabled, and nothing more is sent to it."},
            "default": {"description": "The event has not arrived; it is sent again later."},
        },
    }


def _properties(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas of all properties within a schema."""
    for part in schema.get("properties", {}).values():
        yield part
        yield from _properties(part)


def _write_for_generators(schema: dict[str, Any]) -> None:
    # The name says the same, and a reference takes no type beside it.
    schema.pop("title", None)
    if "$ref" in schema:
        schema.pop("type", None)
    # Some generators demand a field that has a default, and some send it: what the server does is told in words.
    default = schema.pop("default", "")
    if default != "":
        schema["description"] += f" Default: `{json.dumps(default)}`."


def _without_null(part: dict[str, Any]) -> None:
    """A parameter or a body that is absent is not null, and there is no null in an address or a header."""
    schema = part.get("schema", {})
    schema.pop("title", None)
    forms = [form for form in schema.get("anyOf", ()) if form != {"type": "null"}]
    if len(forms) == 1:
        del schema["anyOf"]
        schema.update(forms[0])


def _complete(operation: dict[str, Any], route: APIRoute) -> set[int]:
    """Adds to an operation what it can answer and read; the statuses of its problems."""
    responses: dict[str, Any] = operation["responses"]
    own = {int(status): response for status, response in route.responses.items() if int(status) >= _FIRST_ERROR}
    # What a route describes itself stays so: OAuth prescribes a form of its own.
    described = {status for status, response in own.items() if "description" in response}
    statuses = {*own, *_derived_statuses(operation, route)} - described
    for part in (*operation.get("parameters", ()), *operation.get("requestBody", {}).get("content", {}).values()):
        _without_null(part)
    for parameter in operation.get("parameters", ()):
        name, is_id, _ = parameter.get("name", "").partition("_id")
        if is_id and parameter["in"] == "path":
            parameter.setdefault("description", f"Id of the {name}.")
    # A call that needs no token says so, because a generator cannot tell it from a forgotten one.
    operation.setdefault("security", [])
    if HTTPStatus.BAD_REQUEST in described:
        # OAuth has one status for whatever is wrong with a request.
        statuses -= FAULTS_OF_REQUEST | {HTTPStatus.FORBIDDEN}
        responses.pop("422", None)
    for number in statuses:
        responses[str(number)] = {"$ref": f"#/components/responses/{_response_name(number)}"}
    if _has_entity_tag(operation, route):
        operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/IfNoneMatch"})
        responses["304"] = {"description": "The `ETag` in `If-None-Match` is still current"}
    for status, response in responses.items():
        if "$ref" not in response:
            _complete_response(int(status), response, list(_sent_headers(int(status), operation, route)))
    operation["responses"] = dict(sorted(responses.items()))
    return statuses


def _complete_response(status: int, response: dict[str, Any], headers: Iterable[str]) -> None:
    response["headers"] = response.get("headers", {}) | _references(*headers)
    if response["description"] == "Successful Response":
        response["description"] = HTTPStatus(status).phrase
    if "text/event-stream" in response.get("content", {}):
        # FastAPI describes the events by a keyword of OpenAPI 3.2; in 3.1 the schema is that of the whole body.
        response["content"]["text/event-stream"] = {"schema": {"type": "string"}}


def _sent_headers(status: int, operation: Mapping[str, Any], route: APIRoute) -> Iterable[str]:
    yield "RequestId"
    if route.path not in PROBE_PATHS:
        yield from _QUOTA_HEADERS
    if status >= _FIRST_ERROR:
        return
    read = {item["$ref"].rpartition("/")[2] for item in operation.get("parameters", ()) if "$ref" in item}
    if "IdempotencyKey" in read:
        yield "Replayed"
    if status in _TAGGED and read & {"IfMatch", "IfNoneMatch"} and "DELETE" not in (route.methods or ()):
        yield "ETag"


def _derived_statuses(operation: Mapping[str, Any], route: APIRoute) -> Iterable[int]:
    # An address that is no UTF-8, a body that is too large, and a query parameter that is not known. The others come
    # before there is a route: too slow a request, too long an address, too large a head.
    yield from (400, 408, 413, 414, 422, 431)
    if route.path not in PROBE_PATHS:
        yield from (429, 503, 504)
    permission = declared_permission(route.dependant)
    if permission is not None and not permission.is_public:
        yield 401
        if permission.scopes or permission.role or permission.needs_session:
            yield 403
    if "GET" not in (route.methods or ()):
        # A browser may send a session cookie from a foreign page.
        yield 403
    if "requestBody" in operation:
        yield 415
    if route.param_convertors:
        yield 404


def _has_entity_tag(operation: Mapping[str, Any], route: APIRoute) -> bool:
    """Whether the response cache's layer gives the answer a tag: whole JSON answers to reads that may be kept."""
    return (
        "GET" in (route.methods or ())
        and route.path.startswith("/v1/")
        and not route.path.startswith("/v1/auth/")
        and "application/json" in operation["responses"].get("200", {}).get("content", {})
    )


def _references(*names: str) -> dict[str, Any]:
    return {_HEADER_NAMES[name]: {"$ref": f"#/components/headers/{name}"} for name in names}


def _response_name(status: int) -> str:
    return error_class_of(status).__name__.lstrip("_")


def _problem(status: int) -> dict[str, Any]:
    error_class = error_class_of(status)
    return {
        "description": error_class.title,
        "headers": _references("RequestId", *_QUOTA_HEADERS, *_HEADERS_OF_STATUS.get(status, ())),
        "content": {
            PROBLEM_MEDIA_TYPE: {
                "schema": {"$ref": "#/components/schemas/Problem"},
                "example": {
                    "type": f"/problems/{error_class.code}",
                    "title": error_class.title,
                    "status": status,
                    "detail": error_class.title,
                    "instance": f"urn:onehop:request:{EXAMPLE_ID}",
                    "code": error_class.code,
                    "request_id": EXAMPLE_ID,
                },
            }
        },
    }
