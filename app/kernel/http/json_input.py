"""JSON as RFC 8259 has it, with nothing tolerated that could be read in two ways or not be stored."""

import json
import math
import re
import sys
from collections.abc import Iterable
from itertools import islice
from typing import Any

from app.kernel.errors import MAX_ERRORS, BadRequest, FieldError, Unprocessable, escape_pointer

# More than any model of ours takes, and less than what the parsers and serializers behind this can bear.
MAX_JSON_DEPTH = 64
_BYTE_ORDER_MARK = "\ufeff"
# Python takes a time that grows with the square of the digits: 4,300 of them, its own limit, take a tenth of a
# millisecond, and 240 such numbers fit into a body.
MAX_DIGITS = 1_000
sys.set_int_max_str_digits(MAX_DIGITS)
# NUL, and what may be a surrogate without its other half.
_SUSPECT_ESCAPE = re.compile(r"\\u(?:0000|[dD][89A-Fa-f])")


class InvalidJson(BadRequest):
    """The body is not JSON by RFC 8259, has a key twice, or is nested too deeply."""

    code = "invalid_json"
    title = "Invalid JSON"


def parse_json(body: bytes) -> Any:
    """The value of a JSON text, by RFC 8259 with nothing tolerated that could be read in two ways.

    Raises:
        InvalidJson: it is not UTF-8, not JSON, nested too deeply, holds a number that is not finite, or names a key
        twice. Unprocessable: a string holds NUL or a lone surrogate, which neither UTF-8 nor Postgres can hold, or an
        integer has more than `MAX_DIGITS` digits.
    """
    is_suspect = False
    try:
        text = body.decode().removeprefix(_BYTE_ORDER_MARK)
        try:
            value = _decoder.decode(text)
        except ValueError as error:
            if isinstance(error, json.JSONDecodeError | _RefusedJson):
                raise
            # It does not say where, and asking for each number would slow down all the other bodies.
            is_suspect = True
            value = _decoder_of_long_numbers.decode(text)
    except RecursionError as error:
        raise InvalidJson("The JSON is nested too deeply.") from error
    except ValueError as error:
        raise InvalidJson(None if isinstance(error, json.JSONDecodeError) else _reason(error)) from error
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _is_too_deep(value):
        raise InvalidJson("The JSON is nested too deeply.")
    if is_suspect or ("\\u" in text and _SUSPECT_ESCAPE.search(text)):
        errors = list(islice(_unstorable(value, "#"), MAX_ERRORS))
        if errors:
            raise Unprocessable("Some values cannot be stored.", errors=errors)
    return value


class _RefusedJson(ValueError):
    """JSON that parses but means nothing definite."""


def _reason(error: ValueError) -> str | None:
    return str(error) if isinstance(error, _RefusedJson) else None


def _refuse_constant(_: str) -> Any:
    raise _RefusedJson("A number is not finite.")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedJson("A number is not finite.")
    return value


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _RefusedJson("An object names a key twice.")
    return value


_TOO_LONG = object()


def _int_or_too_long(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        return _TOO_LONG


_decoder, _decoder_of_long_numbers = (
    json.JSONDecoder(
        object_pairs_hook=_unique_pairs,
        parse_int=parse_int,
        parse_float=_finite_float,
        parse_constant=_refuse_constant,
        strict=True,
    )
    for parse_int in (None, _int_or_too_long)
)


def _is_too_deep(value: Any) -> bool:
    # Level by level: what is deep enough would break a function that calls itself.
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


def _unstorable(value: Any, pointer: str) -> Iterable[FieldError]:
    if isinstance(value, str):
        if "\0" in value or not _is_encodable(value):
            yield FieldError(pointer, "The text holds NUL or a lone surrogate.", "invalid_text")
    elif value is _TOO_LONG:
        yield FieldError(pointer, "The number has too many digits.", "too_many_digits")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unstorable(item, f"{pointer}/{index}")
    elif isinstance(value, dict):
        for key, item in value.items():
            if "\0" in key or not _is_encodable(key):
                yield FieldError(pointer, "A key holds NUL or a lone surrogate.", "invalid_text")
            else:
                yield from _unstorable(item, f"{pointer}/{escape_pointer(key)}")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
