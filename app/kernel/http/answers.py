"""Answers from our own records, and their entity tags."""

from collections.abc import Mapping
from decimal import Decimal
from hashlib import blake2b
from typing import Any
from uuid import UUID

import orjson
from fastapi import Request, Response

_JSON_OPTIONS = orjson.OPT_UTC_Z
_ETAG_BYTES = 12
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
    if isinstance(value, frozenset | set):
        return sorted(value)
    message = f"{type(value).__name__} has no JSON form here"
    raise TypeError(message)
