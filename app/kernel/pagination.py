"""Keyset pagination with signed cursors.

A cursor carries the sort key of the last item. It is bound to one list, one owner and one set of filters by an HMAC,
so a cursor from elsewhere, or a changed one, is refused instead of quietly returning the wrong rows.

Where no index serves a filter, a page reads at most `MAX_SCANNED` rows. It may then hold fewer items than asked for, or
none, although rows follow: its cursor continues after the last row that was read. A page whose items are large is short
too: it ends before the one that would go beyond `MAX_PAGE_BYTES`.
"""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Generic, TypeVar

import msgspec

from app.kernel.errors import BadRequest

T = TypeVar("T")

# Rows that one page of a filtered list reads, so that its cost does not grow with what the owner has.
MAX_SCANNED = 2_000
# Of a list whose items may be large: to write and to hash more holds the event loop, and each reader keeps it.
MAX_PAGE_BYTES = 1024 * 1024
_SIGNATURE_BYTES = 16


class InvalidCursor(BadRequest):
    """The cursor was changed, or is that of another list. Begin at the first page."""

    code = "invalid_cursor"
    title = "Invalid cursor"


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list; `next_cursor` is None on the last one."""

    items: list[T]
    next_cursor: str | None


class Cursors:
    """Makes and reads cursors. `key` is a secret of at least 32 bytes, shared by all processes."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def encode(self, list_name: str, owner: object, values: tuple[Any, ...]) -> str:
        """A cursor that continues after `values` (str, int, bool, None, UUID or aware datetime) in this list."""
        payload = msgspec.msgpack.encode(values)
        return _text_of(self._sign(list_name, owner, payload) + payload)

    def decode(self, list_name: str, owner: object, cursor: str, types: type[Any]) -> Any:
        """The values of a cursor as `types`, for example `tuple[datetime, UUID]`.

        Raises:
            InvalidCursor: it was changed, or made for another list, owner or filter.
        """
        try:
            raw = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        except (Base64Error, ValueError) as error:
            raise InvalidCursor from error
        signature, payload = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        # Base64 has several texts for the same bytes, and Python's reads over foreign characters; only ours is taken.
        if _text_of(raw) != cursor or not hmac.compare_digest(signature, self._sign(list_name, owner, payload)):
            raise InvalidCursor
        return msgspec.msgpack.decode(payload, type=types)

    def paginate(
        self,
        list_name: str,
        owner: object,
        found: Sequence[T],
        key: Callable[[T], tuple[Any, ...]],
        *,
        limit: int,
        scan_end: tuple[Any, ...] | None = None,
    ) -> Page[T]:
        """The first `limit` of what was found; one more tells that another page follows. `key`: an item's sort key.

        `scan_end`: sort key of the last row that was read, where the page did not read to the end of the list.
        """
        items = list(found[:limit])
        last = key(items[-1]) if len(found) > limit else scan_end
        return Page(items, None if last is None else self.encode(list_name, owner, last))

    def paginate_in_memory(
        self,
        list_name: str,
        owner: object,
        items: Sequence[T],
        key: Callable[[T], Any],
        types: type[Any],
        *,
        limit: int,
        cursor: str | None,
        descending: bool = False,
    ) -> Page[T]:
        """One page of a list so short that it is read whole. `items` are sorted by `key`, a tuple of `types`.

        Raises:
            InvalidCursor
        """
        if cursor is not None:
            last = self.decode(list_name, owner, cursor, types)
            items = [item for item in items if (key(item) < last if descending else key(item) > last)]
        return self.paginate(list_name, owner, items, key, limit=limit)

    def _sign(self, list_name: str, owner: object, payload: bytes) -> bytes:
        scope = f"{list_name}\0{owner}\0".encode()
        return hmac.digest(self._key, scope + payload, sha256)[:_SIGNATURE_BYTES]


def _text_of(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()
