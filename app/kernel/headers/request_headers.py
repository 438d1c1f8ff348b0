"""The header fields of a request, read once and in one way by every layer, route and framework that looks at them.

A field on several lines means what one line with a comma between their values means (RFC 9110, section 5.3). Of a field
that holds a single value there is no such reading: two layers that took another one of two `Authorization` lines would
work for two users. Such a request is refused.
"""

from collections.abc import Sequence

from app.kernel.errors import BadRequest, FieldError

Fields = Sequence[tuple[bytes, bytes]]

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


def read_headers(fields: Fields) -> tuple[dict[bytes, bytes], bytes | None]:
    """The fields of a request by name, in lower case; lines of one field are joined. The second is the name of a field
    that came more than once and must not, which is left out of the first. So is a cookie that is none.
    """
    lines: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        lines.setdefault(name, []).append(value)
    repeated = None
    headers: dict[bytes, bytes] = {}
    for name, values in lines.items():
        if len(values) > 1 and name in SINGLETONS:
            repeated = name
        else:
            # Cookies have a separator of their own (RFC 6265, section 4.2.1).
            headers[name] = (b"; " if name == b"cookie" else b", ").join(values)
    if b"\\" in headers.get(b"cookie", b""):
        # No value of a cookie may hold a backslash (RFC 6265, section 4.1.1), and up to Python 3.11.9 `http.cookies`
        # takes seconds for 30 kB of them (CVE-2024-7592).
        headers[b"cookie"] = b";".join(pair for pair in headers[b"cookie"].split(b";") if b"\\" not in pair)
    return headers, repeated
