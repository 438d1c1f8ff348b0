"""The HTTP edge that all routers share: strict input, answers from bytes, problems, entity tags.

Input is refused before it reaches a model: JSON that is not RFC 8259 (NaN, duplicate keys, invalid UTF-8), text that
Postgres cannot store (NUL, lone surrogates), unknown query parameters, another media type. Output is built from our own
records with orjson; the response models only document it, and the tests hold the two together.
"""

from app.kernel.errors import PROBLEM_MEDIA_TYPE
from app.kernel.http.body_limits import BodyLimits
from app.kernel.http.direct import DirectRoutes
from app.kernel.http.encoding import AmbiguousPath, InvalidEncoding, check_path
from app.kernel.http.json_input import MAX_JSON_DEPTH, InvalidJson, parse_json
from app.kernel.http.openapi import located, make_openapi, reads_headers, takes_token
from app.kernel.http.preconditions import (
    Preconditions,
    body_etag,
    etag_of,
    matches_any,
    matches_strongly,
    version_etag,
)
from app.kernel.http.prefer_header import asked_to_wait, prefers_json
from app.kernel.http.problems import install_error_handlers, problem_response, problem_responses
from app.kernel.http.responses import dump_json, json_fragment, json_response
from app.kernel.http.routing import Router, StrictRoute, operation_id, reserve_literal_paths
from app.kernel.http.schemas import (
    EXAMPLE_ID,
    EXAMPLE_TIME,
    CreatedAt,
    Email,
    EmailText,
    Id,
    NextCursor,
    PageQuery,
    PageQueryDep,
    Problem,
    ProblemCode,
    ProblemField,
    Schema,
    Timestamp,
    example,
    path_name,
)

__all__ = [
    "EXAMPLE_ID",
    "EXAMPLE_TIME",
    "MAX_JSON_DEPTH",
    "PROBLEM_MEDIA_TYPE",
    "AmbiguousPath",
    "BodyLimits",
    "CreatedAt",
    "DirectRoutes",
    "Email",
    "EmailText",
    "Id",
    "InvalidEncoding",
    "InvalidJson",
    "NextCursor",
    "PageQuery",
    "PageQueryDep",
    "Preconditions",
    "Problem",
    "ProblemCode",
    "ProblemField",
    "Router",
    "Schema",
    "StrictRoute",
    "Timestamp",
    "asked_to_wait",
    "body_etag",
    "check_path",
    "dump_json",
    "etag_of",
    "example",
    "install_error_handlers",
    "json_fragment",
    "json_response",
    "located",
    "make_openapi",
    "matches_any",
    "matches_strongly",
    "operation_id",
    "parse_json",
    "path_name",
    "prefers_json",
    "problem_response",
    "problem_responses",
    "reads_headers",
    "reserve_literal_paths",
    "takes_token",
    "version_etag",
]
