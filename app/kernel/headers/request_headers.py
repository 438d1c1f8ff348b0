"""The header fields of a request, read once and in one way by every layer, route and framework that looks at them.

A field on several lines means what one line with a comma between their values means (RFC 9110, section 5.3). Of a field
that holds a single value there is no such reading: two layers that took another one of two `Authorization` lines would
work for two users. Such a request is refused.
"""

from collections.abc import Iterable, MutableMapping
from typing import Any, cast

from app.kernel.errors import BadRequest, FieldError

Fields = Iterable[tuple[bytes, bytes]]

# Fields that hold one value. `traceparent` is none of them, because a request with two of them begins a new trace
# (W3C Trace Context): joined by a comma they are no valid one.
SINGLETONS = frozenset(
    {
        b"access-control-request-method",
        b"authorization",
        b"content-disposition",
        b"content-length",
        b"content-location",
        b"content-range",
        b"content-type",
        b"date",
        b"dpop",
        b"from",
        b"host",
        b"idempotency-key",
        b"if-modified-since",
        b"if-range",
        b"if-unmodified-since",
        b"last-event-id",
        b"max-forwards",
        b"origin",
        b"proxy-authorization",
        b"range",
        b"referer",
        b"sec-fetch-dest",
        b"sec-fetch-mode",
        b"sec-fetch-site",
        b"sec-fetch-user",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"user-agent",
        b"x-request-id",
    }
)


class RepeatedHeader(BadRequest):
    """A header field that holds a single value was sent more than once. Send it once."""

    code = "repeated_header"
    title = "Repeated header field"

    def __init__(self, name: str) -> None:
        error = FieldError(f"header:{name}", "Send this field once.", "repeated_header")
        super().__init__(f"Send {name} once.", errors=[error])


def headers_of(scope: MutableMapping[str, Any]) -> dict[bytes, bytes]:
    """The fields of an ASGI request by name, in lower case; lines of one field are joined.

    From the first call on `scope["headers"]` has one line for each field too, for Starlette and FastAPI. A field that
    must not be repeated, and is, is left out, and `check_headers` raises. So is a cookie that is none.
    """
    found: dict[bytes, bytes] | None = scope.get("found_headers")
    if found is None:
        fields = scope["headers"]
        found = dict(fields)
        if len(found) != len(fields):
            found = _join(scope, fields)
        if b"\\" in found.get(b"cookie", b""):
            _drop_escaped_cookies(scope, found)
        scope["found_headers"] = found
    return found


def ignore_header(scope: MutableMapping[str, Any], name: bytes) -> None:
    """From now on the request has no such field for any layer, route or framework."""
    if headers_of(scope).pop(name, None) is not None:
        scope["headers"] = list(headers_of(scope).items())


def has_repeated_header(scope: MutableMapping[str, Any]) -> bool:
    """Whether `check_headers` raises; to be asked after `headers_of`."""
    return "repeated_header" in scope


def check_headers(scope: MutableMapping[str, Any]) -> None:
    """To be called after `headers_of`.

    Raises:
        RepeatedHeader: a field that holds one value came more than once.
    """
    name = scope.get("repeated_header")
    if name is not None:
        raise RepeatedHeader(cast("bytes", name).decode("latin-1").title())


def _drop_escaped_cookies(scope: MutableMapping[str, Any], found: dict[bytes, bytes]) -> None:
    """No value of a cookie may hold a backslash (RFC 6265, section 4.1.1), and up to Python 3.11.9 `http.cookies` takes
    seconds for 30 kB of them (CVE-2024-7592).
    """
    found[b"cookie"] = b";".join(pair for pair in found[b"cookie"].split(b";") if b"\\" not in pair)
    scope["headers"] = list(found.items())


def _join(scope: MutableMapping[str, Any], fields: Fields) -> dict[bytes, bytes]:
    lines: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        lines.setdefault(name, []).append(value)
    found: dict[bytes, bytes] = {}
    for name, values in lines.items():
        if len(values) > 1 and name in SINGLETONS:
            scope["repeated_header"] = name
        else:
            # Cookies have a separator of their own (RFC 6265, section 4.2.1).
            found[name] = (b"; " if name == b"cookie" else b", ").join(values)
    scope["headers"] = list(found.items())
    return found
