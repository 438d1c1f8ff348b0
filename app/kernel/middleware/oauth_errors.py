"""Problems of the OAuth endpoints in OAuth's form (RFC 6749, section 5.2), whether a layer, the form, the framework or
the route raised them.

A client library reads `error` of any answer that is not 200, and takes an answer without it for a token.
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.types import Message, Send

from app.kernel.errors import PROBLEM_MEDIA_TYPE

_PROBLEM = (b"content-type", PROBLEM_MEDIA_TYPE.encode())
_INVALID_REQUEST = 400
# What is wrong with a request has one status here, and one word.
_FAULTS_OF_REQUEST = frozenset({400, 412, 413, 415, 422})
# Names of RFC 6749 (sections 4.1.2.1 and 5.2) for those that have one; the others keep the problem's code.
_CODES = {401: "invalid_client", 405: "invalid_request", 500: "server_error"} | dict.fromkeys(
    (503, 504), "temporarily_unavailable"
)
_BEARER_CODES = frozenset({"invalid_token", "token_expired", "token_revoked"})
# All that a description may hold.
_UNPRINTABLE = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")


class OAuthErrors:
    """One answer on its way out; one that is no problem goes through as it is. `status`: of what was sent instead of a
    problem, else 0.
    """

    __slots__ = ("_send", "_start", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= _INVALID_REQUEST and _PROBLEM in message["headers"]:
                # Problems are whole, and their body is the next message.
                self._start = message
                return
        elif self._start is not None:
            start, self._start = self._start, None
            if not message["body"]:
                # To HEAD.
                await self._send(start)
                await self._send(message)
                return
            self.status, body = oauth_error(orjson.loads(message["body"]))
            changed = {b"content-type": b"application/json", b"content-length": b"%d" % len(body)}
            headers = [(name, changed.get(name, value)) for name, value in start["headers"]]
            await self._send({"type": start["type"], "status": self.status, "headers": headers})
            message = {"type": message["type"], "body": body}
        await self._send(message)


def oauth_error(problem: Mapping[str, Any]) -> tuple[int, bytes]:
    """Status and body for a problem."""
    status = problem["status"]
    code = problem["code"]
    if status in _FAULTS_OF_REQUEST:
        status, code = _INVALID_REQUEST, "invalid_request"
    elif code in _BEARER_CODES:
        code = "invalid_token"
    else:
        code = _CODES.get(status, code)
    texts = [problem["detail"], *(f"{error['pointer']}: {error['detail']}" for error in problem.get("errors", ()))]
    description = _UNPRINTABLE.sub("?", " ".join(texts).replace('"', "'"))
    return status, orjson.dumps({"error": code, "error_description": description})
