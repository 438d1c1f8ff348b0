"""Calls of the API by a page in the same process, as the caller of the page."""

from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import orjson
from fastapi import Request
from starlette.types import ASGIApp, Message

from app.kernel.request.state import part_of

# Of the page alone: its conditions, encodings and ranges are not those of what it is made of.
_FORWARDED = frozenset({b"host", b"user-agent", b"authorization", b"cookie", b"x-forwarded-for", b"forwarded"})


class CallFailed(Exception):
    """The API refused. `problem` is what it answered."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(f"{status} {problem.get('code')}")
        self.status = status
        self.problem = problem


class LocalApi:
    """The routes behind the layers that `request` has passed: nothing is authenticated or admitted anew, and each route
    checks the permissions of the caller and charges what it costs.
    """

    def __init__(self, request: Request, routes: ASGIApp, now: datetime) -> None:
        self.now = now
        self._scope = request.scope
        self._routes = routes

    async def get(self, path: str, **query: str | int | None) -> Any:
        """The JSON of `GET path`; parameters that are None or empty are left out.

        Raises:
            CallFailed: the answer is no success. QuotaExceeded: the caller's quota is used up.
        """
        given = {name: value for name, value in query.items() if value not in (None, "")}
        scope = part_of(self._scope, path, urlencode(given), _FORWARDED)
        answer = _Answer()
        await self._routes(scope, _nothing_to_receive, answer.take)
        content = orjson.loads(answer.body)
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise CallFailed(answer.status, content)
        return content


class _Answer:
    def __init__(self) -> None:
        self.status = 0
        self.body = b""

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")


async def _nothing_to_receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def local_api(request: Request, now: datetime) -> LocalApi:
    """Of the application that serves `request`."""
    return LocalApi(request, request.app.state.handlers, now)
