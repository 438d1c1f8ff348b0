"""Pure rules."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from app.users.records import json_object, merge_patch

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=2), children, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_is_rfc_7396(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


@given(JSON, JSON)
def test_merging_twice_is_merging_once(target: Any, patch: Any) -> None:
    once = merge_patch(target, patch)
    assert merge_patch(once, patch) == once


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([], "wrong_type"),
        (None, "wrong_type"),
        ({"a": [[]]}, "too_deep"),
        ({"a": {"b": {}}}, "too_deep"),
        ({"a": "ü" * 10}, "too_large"),
        ({"a": 2**64}, "number_too_large"),
        ({"a": 1e20}, "too_large"),
        ({"a": [-1e-9, 1e-9]}, "too_large"),
    ],
)
def test_json_object_refuses(value: Any, code: str) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        json_object(value, max_bytes=20, max_depth=2)
    assert caught.value.type == code


def test_json_object_counts_bytes_and_levels() -> None:
    assert json_object({"a": ["ü" * 5]}, max_bytes=20, max_depth=2) == '{"a":["üüüüü"]}'
    assert json_object({'"1e+9': "\\7e-9"}, max_bytes=20, max_depth=2) == '{"\\"1e+9":"\\\\7e-9"}'
