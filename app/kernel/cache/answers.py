"""A finished answer, as both levels keep it."""

from collections.abc import Sequence

import msgspec

from app.kernel.heads import PreparedHead

_OK = 200
_NOT_MODIFIED = 304


class CachedAnswer:
    """A finished 200 answer: raw header pairs, entity tag, and body; `headers` include Content-Length."""

    __slots__ = ("_unchanged", "body", "etag", "head")

    def __init__(self, headers: Sequence[tuple[bytes, bytes]], etag: bytes, body: bytes) -> None:
        self.head = PreparedHead(_OK, headers)
        self.etag = etag
        self.body = body
        self._unchanged: PreparedHead | None = None

    @property
    def unchanged(self) -> PreparedHead:
        """The head of a 304 for who has this answer already (RFC 9110, section 15.4.5)."""
        if self._unchanged is None:
            kept = [header for header in self.head.headers if header[0] in {b"cache-control", b"etag"}]
            self._unchanged = PreparedHead(_NOT_MODIFIED, kept)
        return self._unchanged

    @property
    def size(self) -> int:
        """Bytes that are counted against the bound of the memory."""
        return len(self.body)

    def encode(self) -> bytes:
        return msgspec.msgpack.encode((self.head.headers, self.etag, self.body))

    @classmethod
    def decode(cls, raw: bytes) -> "CachedAnswer":
        return cls(*msgspec.msgpack.decode(raw, type=tuple[list[tuple[bytes, bytes]], bytes, bytes]))
