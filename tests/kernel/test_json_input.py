"""JSON as it comes in: what is read, and what is refused and how."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.kernel.errors import (
    AppError,
    Unprocessable,
)
from app.kernel.http import InvalidJson, parse_json

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), inner)
    ),
    max_leaves=20,
)


@given(JSON, st.booleans())
def test_reads_whatever_is_json(value: object, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=40))
@example(b'{"a":1}x')
@example(b"\xff")
def test_never_fails_in_another_way(body: bytes) -> None:
    try:
        parse_json(body)
    except AppError as error:
        assert error.status in {400, 422}  # noqa: PT017 - both outcomes are right


def test_a_byte_order_mark_is_read_over() -> None:
    assert parse_json(b"\xef\xbb\xbf{}") == {}


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"a": 1, "a": 2}', "An object names a key twice."),
        (b'{"a": {"b": 1, "b": 1}}', "An object names a key twice."),
        (b'[{"\\u0061": 1, "a": 1}]', "An object names a key twice."),
        (b"NaN", "A number is not finite."),
        (b"[-Infinity]", "A number is not finite."),
        (b"1e400", "A number is not finite."),
        (b"-1.5e99999", "A number is not finite."),
        (b"[" * 5_000 + b"]" * 5_000, "The JSON is nested too deeply."),
        (b'{"a":' * 1_000_000, "The JSON is nested too deeply."),
        (b"[" * 1_000_000, "The JSON is nested too deeply."),
        (b'"\x00"', None),
        (b'"\x1f"', None),
        (b'"\xff"', None),
        (b'"\xed\xa0\x80"', None),
        ('{"a":1}'.encode("utf-16"), None),
        (b"{'a': 1}", None),
        (b"[1,]", None),
        (b"01", None),
        (b"+1", None),
        (b"1.", None),
        (b'"\\x"', None),
        (b"// comment\n1", None),
        (b"undefined", None),
        (b" ", None),
    ],
)
def test_refuses_what_is_not_definite_json(body: bytes, detail: str | None) -> None:
    with pytest.raises(InvalidJson) as raised:
        parse_json(body)
    assert raised.value.detail == detail


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (b'"\\u0000"', ["#"]),
        (b'"\\ud800"', ["#"]),
        (b'"\\udc00\\ud800"', ["#"]),
        (b'{"a": ["x", "\\u0000"], "b/~": {"c": "\\udfff"}}', ["#/a/1", "#/b~1~0/c"]),
        (b'{"a": {"\\u0000": 1}}', ["#/a"]),
    ],
)
def test_refuses_text_that_cannot_be_stored(body: bytes, pointers: list[str]) -> None:
    with pytest.raises(Unprocessable) as raised:
        parse_json(body)
    assert [error.pointer for error in raised.value.errors] == pointers
    assert {error.code for error in raised.value.errors} == {"invalid_text"}


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (b"9" * 5_000, ["#"]),
        (b'{"a": [1, -%b, 2], "b/~": {"c": %b}, "d": 9.5}' % (b"9" * 5_000, b"1" * 1_000_000), ["#/a/1", "#/b~1~0/c"]),
        (b"[%b]" % b",".join([b"1" * 4_301] * 200), [f"#/{index}" for index in range(20)]),
    ],
)
def test_refuses_integers_of_too_many_digits(body: bytes, pointers: list[str]) -> None:
    with pytest.raises(Unprocessable) as raised:
        parse_json(body)
    assert [error.pointer for error in raised.value.errors] == pointers
    assert {error.code for error in raised.value.errors} == {"too_many_digits"}


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"a": %b, "b": 1, "b": 2}' % (b"9" * 5_000), "An object names a key twice."),
        (b"[%b, NaN]" % (b"9" * 5_000), "A number is not finite."),
        (b"[%b, %b" % (b"9" * 5_000, b"[" * 100_000), "The JSON is nested too deeply."),
        (b"[%b, %b%b]" % (b"9" * 5_000, b"[" * 70, b"]" * 70), "The JSON is nested too deeply."),
        (b"[%b" % (b"9" * 5_000), None),
    ],
)
def test_a_long_integer_hides_no_other_fault(body: bytes, detail: str | None) -> None:
    with pytest.raises(InvalidJson) as raised:
        parse_json(body)
    assert raised.value.detail == detail


def test_pairs_of_surrogates_are_text() -> None:
    assert parse_json(b'"\\ud83d\\ude00 \\u0041"') == "😀 A"
