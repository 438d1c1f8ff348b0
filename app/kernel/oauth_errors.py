"""OAuth's form of an error (RFC 6749, section 5.2), for the endpoints of OAuth.

A client library reads `error` of any answer that is not 200, and takes an answer without it for a token.
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson

MEDIA_TYPE = "application/json"
_INVALID_REQUEST = 400
# What is wrong with a request has one status here, and one word.
FAULTS_OF_REQUEST = frozenset({400, 412, 413, 414, 415, 422, 431})
# Names of RFC 6749 (sections 4.1.2.1 and 5.2) for those that have one; the others keep the problem's code.
_CODES = {401: "invalid_client", 405: "invalid_request", 500: "server_error"} | dict.fromkeys(
    (503, 504), "temporarily_unavailable"
)
_BEARER_CODES = frozenset({"invalid_token", "token_expired", "token_revoked"})
# All that a description may hold.
_UNPRINTABLE = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")


def oauth_error(problem: Mapping[str, Any]) -> tuple[int, bytes]:
    """Status and body for a problem."""
    status = problem["status"]
    code = problem["code"]
    if status in FAULTS_OF_REQUEST:
        status, code = _INVALID_REQUEST, "invalid_request"
    elif code in _BEARER_CODES:
        code = "invalid_token"
    else:
        code = _CODES.get(status, code)
    texts = [problem["detail"], *(f"{error['pointer']}: {error['detail']}" for error in problem.get("errors", ()))]
    description = _UNPRINTABLE.sub("?", " ".join(texts).replace('"', "'"))
    return status, orjson.dumps({"error": code, "error_description": description})
