"""Answers from our own records."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
from fastapi import Response

_JSON_OPTIONS = orjson.OPT_UTC_Z
_CONTENT_TYPE = (b"content-type", b"application/json")


def dump_json(content: Any) -> bytes:
    """`content` as JSON: what orjson takes, decimals as text, and sets as sorted arrays; times in UTC end in `Z`."""
    return orjson.dumps(content, default=_encode, option=_JSON_OPTIONS)


class _JsonResponse(Response):
    """Starlette's, whose usual headers do not have to be worked out for each answer."""

    media_type = "application/json"

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        if headers is None:
            self.raw_headers = [(b"content-length", b"%d" % len(self.body)), _CONTENT_TYPE]
        else:
            super().init_headers(headers)


def json_response(
    content: Any,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    etag: str | None = None,
) -> Response:
    """An answer whose body is `content` as JSON. `etag` is a strong entity tag, quotes included."""
    response = _JsonResponse(dump_json(content), status, headers)
    if etag is not None:
        response.headers["ETag"] = etag
    return response


def json_fragment(text: str) -> orjson.Fragment:
    """JSON text from Postgres, to be put into an answer as it is."""
    return orjson.Fragment(text)


def _encode(value: Any) -> Any:
    # asyncpg's UUID is a subclass, which orjson does not take by itself.
    if isinstance(value, UUID | Decimal):
        return str(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    message = f"{type(value).__name__} has no JSON form here"
    raise TypeError(message)
