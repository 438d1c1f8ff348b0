"""Entity tags, and the conditions of requests, by themselves; with routes in `test_http` and `tests/contract`."""

import pytest

from app.kernel.database.versions import ANY_VERSION, NO_VERSION, Versions
from app.kernel.errors import PreconditionFailed
from app.kernel.http import Preconditions, etag_of, matches_any, version_etag
from app.kernel.request.state import state_of


def test_entity_tags_of_parts() -> None:
    assert etag_of("a", 1) == etag_of("a", 1) != etag_of("a", 2)
    assert etag_of("ab", "c") != etag_of("a", "bc")
    assert matches_any(b'"a"', b'"a"')
    assert not matches_any(b'"a"', b'"b"')


def conditions(**headers: str) -> Preconditions:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Preconditions.of(state_of({"type": "http", "headers": raw}))


def test_versions_that_may_be_changed() -> None:
    for life in (b"", bytes(16)):
        tag = version_etag("ab", 3, life)
        forms = (tag, f'"x", {tag}', tag[:-1] + '-gzip"')
        foreign = (version_etag("cd", 3, life), version_etag("ab", 3, b"x" * 16), "", "\xff")

        def versions(if_match: str | None = None, if_none_match: str | None = None, life: bytes = life) -> Versions:
            fields = {"if_match": if_match, "if_none_match": if_none_match}
            given = {name: value for name, value in fields.items() if value is not None}
            return conditions(**given).versions("ab", life)

        assert versions() == versions(if_match="*") == ANY_VERSION
        for named in forms:
            assert versions(if_match=named) == Versions((3,), excluded=False)
        for named in (*foreign, f"W/{tag}"):
            assert versions(if_match=named) == NO_VERSION
        for named in (*forms, f"W/{tag}"):
            for present in (None, "*"):
                assert versions(present, named) == Versions((3,), excluded=True)
            assert versions(if_match=tag, if_none_match=named) == NO_VERSION
        for named in foreign:
            assert versions(if_none_match=named) == ANY_VERSION
        for present in (None, "*", tag):
            assert versions(present, "*") == NO_VERSION


def test_versions_are_those_named_or_all_others() -> None:
    assert [4 in versions for versions in (Versions((4,), excluded=False), NO_VERSION)] == [True, False]
    assert [4 in versions for versions in (Versions((4,), excluded=True), ANY_VERSION)] == [False, True]


@pytest.mark.parametrize(
    ("headers", "is_met"),
    [
        ({}, True),
        ({"if_match": "*"}, True),
        ({"if_match": '"a"'}, True),
        ({"if_match": '"b", "a-gzip"'}, True),
        ({"if_match": 'W/"a"'}, False),
        ({"if_match": '"b"'}, False),
        ({"if_none_match": "*"}, False),
        ({"if_none_match": 'W/"a"'}, False),
        ({"if_none_match": '"b", "a-gzip"'}, False),
        ({"if_none_match": '"b"'}, True),
        ({"if_match": '"a"', "if_none_match": '"a"'}, False),
        ({"if_unmodified_since": "Thu, 01 Jan 1970 00:00:00 GMT"}, True),
    ],
)
def test_preconditions_of_a_write(headers: dict[str, str], is_met: bool) -> None:
    found = conditions(**headers)
    assert bool(found) == bool(set(headers) - {"if_unmodified_since"})
    if is_met:
        found.check(b'"a"')
    else:
        with pytest.raises(PreconditionFailed):
            found.check(b'"a"')
