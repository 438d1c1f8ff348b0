"""Percent-encoding in the address of a request: valid, storable, and of a path with one spelling only."""

import re
from urllib.parse import unquote_to_bytes

from app.kernel.errors import BadRequest, FieldError, Unprocessable

_INVALID_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# Letters, digits, `-`, `.`, `_` and `~` (RFC 3986, section 2.3), and the two signs that separate segments.
_AMBIGUOUS = re.compile(rb"%(?:2[DEFdef]|3[0-9]|4[1-9A-Fa-f]|5[0-9AFCafc]|6[1-9A-Fa-f]|7[0-9AEae])")


class InvalidEncoding(BadRequest):
    """The path or query is not percent-encoded UTF-8."""

    code = "invalid_encoding"
    title = "Invalid percent-encoding"


class AmbiguousPath(BadRequest):
    """The path encodes a character that needs no encoding, so a proxy would see another path than the router."""

    code = "ambiguous_path"
    title = "Path not normalized"


def check_path(raw: bytes) -> None:
    """Lets a path pass that cannot be routed as another one.

    Raises:
        InvalidEncoding: it is not percent-encoded UTF-8.
        AmbiguousPath: it encodes a character that needs no encoding, or a separator (RFC 3986, section 6.2.2.2).
    """
    if b"%" not in raw:
        return
    _decode(raw)
    if _AMBIGUOUS.search(raw):
        raise AmbiguousPath("Letters, digits, '-', '.', '_', '~', '/' and '\\' must not be percent-encoded in a path.")


def check_text(raw: bytes, place: str) -> None:
    """Lets a part of the address pass whose text can be stored.

    Raises:
        InvalidEncoding: it is not percent-encoded UTF-8.
        Unprocessable: it holds NUL. `place` is the pointer of that error.
    """
    if b"%" in raw and "\0" in _decode(raw.replace(b"+", b" ")):
        raise Unprocessable(errors=[FieldError(place, "The text holds NUL.", "invalid_text")])


def _decode(raw: bytes) -> str:
    if _INVALID_PERCENT.search(raw):
        raise InvalidEncoding
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise InvalidEncoding from error
