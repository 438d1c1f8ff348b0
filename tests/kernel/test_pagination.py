"""Signed cursors."""

import string
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.kernel.pagination import Cursors, InvalidCursor

CURSORS = Cursors(b"k" * 32)
VALUES = (datetime(2026, 11, 22, 10, 30, 0, 123456, tzinfo=UTC), UUID(int=7), "kind", 3, None)
TYPES: type[Any] = tuple[datetime, UUID, str, int, None]


def test_values_come_back() -> None:
    cursor = CURSORS.encode("events", UUID(int=1), VALUES)
    assert CURSORS.decode("events", UUID(int=1), cursor, TYPES) == VALUES
    assert set(cursor) <= set(string.ascii_letters + string.digits + "-_")


@pytest.mark.parametrize(
    ("cursors", "list_name", "owner"),
    [
        (CURSORS, "jobs", UUID(int=1)),
        (CURSORS, "events", UUID(int=2)),
        (CURSORS, "events", (UUID(int=1), "filter")),
        (Cursors(b"l" * 32), "events", UUID(int=1)),
    ],
)
def test_foreign_cursors_are_refused(cursors: Cursors, list_name: str, owner: object) -> None:
    cursor = CURSORS.encode("events", UUID(int=1), VALUES)
    with pytest.raises(InvalidCursor) as raised:
        cursors.decode(list_name, owner, cursor, TYPES)
    assert (raised.value.status, raised.value.code) == (400, "invalid_cursor")


def test_every_changed_character_is_noticed() -> None:
    cursor = CURSORS.encode("events", 1, (1, 2))
    changed = [
        cursor[:place] + character + cursor[place + 1 :]
        for place in range(len(cursor))
        for character in string.ascii_letters + string.digits + "-_=+/ \n!"
        if cursor[place] != character
    ]
    changed += [cursor + character for character in "A=!\n-"] + [cursor[:-1], cursor[1:], "=" + cursor]
    for text in changed:
        with pytest.raises(InvalidCursor):
            CURSORS.decode("events", 1, text, tuple[int, int])


@pytest.mark.parametrize("descending", [False, True])
def test_a_list_that_is_read_whole_has_pages_too(*, descending: bool) -> None:
    items = sorted(range(7), reverse=descending)
    seen: list[int] = []
    cursor: str | None = None
    for size in (3, 3, 1):
        page = CURSORS.paginate_in_memory(
            "few", 1, items, lambda item: (item,), tuple[int], limit=3, cursor=cursor, descending=descending
        )
        assert len(page.items) == size
        seen += page.items
        cursor = page.next_cursor
        if cursor is not None:
            items = [item for item in items if item != seen[-1]]
    assert (seen, cursor) == (sorted(range(7), reverse=descending), None)


@given(st.text(max_size=200))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidCursor):
        CURSORS.decode("events", 1, text, tuple[int, int])
