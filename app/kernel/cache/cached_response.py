"""A finished answer, as both levels keep it, and its compressed form."""

from collections.abc import Sequence

import msgspec

from app.kernel.headers.codings import (
    LARGEST,
    LARGEST_AT_ONCE,
    SMALLEST,
    accepts_gzip,
    compress,
    gzip_etag,
    is_compressible,
    threads,
)
from app.kernel.headers.response_head import PreparedHead

_OK = 200
_NOT_MODIFIED = 304
_KEPT_UNCHANGED = frozenset({b"cache-control", b"etag", b"vary"})
_VARY = (b"vary", b"accept-encoding")


# The largest answers that are kept. Of an address with a query, which has as many spellings as its caller likes, an
# answer may be less, and only a few are kept of each user.
MAX_BYTES = 256 * 1024
MAX_VARIANT_BYTES = 64 * 1024
MAX_VARIANTS = 4
# Objects around a body in the memory of a process: entry, heads and their lines, tags.
_OVERHEAD = 2048


class CachedAnswer:
    """A finished 200 answer: raw header pairs, entity tag, and body; `headers` include Content-Length."""

    __slots__ = ("_compressed", "_unchanged", "_varies", "body", "etag", "head")

    def __init__(self, headers: Sequence[tuple[bytes, bytes]], etag: bytes, body: bytes) -> None:
        self.head = PreparedHead(_OK, headers)
        self._compressed: CachedAnswer | None = None
        self._varies = _VARY in headers
        self.etag = etag
        self.body = body
        self._unchanged: PreparedHead | None = None

    @property
    def unchanged(self) -> PreparedHead:
        """The head of a 304 for a client that has this answer already (RFC 9110, section 15.4.5)."""
        if self._unchanged is None:
            kept = [header for header in self.head.headers if header[0] in _KEPT_UNCHANGED]
            self._unchanged = PreparedHead(_NOT_MODIFIED, kept)
        return self._unchanged

    @property
    def unchanged_compressed(self) -> PreparedHead:
        """The same for a client that has the compressed form, which need not be made again for that."""
        etag = gzip_etag(self.etag)
        return PreparedHead(
            _NOT_MODIFIED,
            [(name, etag if name == b"etag" else value) for name, value in self.unchanged.headers],
        )

    @property
    def size(self) -> int:
        """Bytes in the memory of a process; three quarters more than the body's for a compressed form."""
        return (len(self.body) * 7 // 4 if self._varies else len(self.body)) + _OVERHEAD

    @classmethod
    def of(cls, headers: Sequence[tuple[bytes, bytes]], etag: bytes, body: bytes) -> "CachedAnswer":
        """One that may be compressed for clients that take that."""
        if SMALLEST <= len(body) <= LARGEST:
            fields = dict(headers)
            if is_compressible(fields.get(b"content-type", b"")) and b"content-encoding" not in fields:
                return cls([*headers, _VARY], etag, body)
        return cls(headers, etag, body)

    def accepted_by(self, accept_encoding: bytes) -> "CachedAnswer | None":
        """The form for this `Accept-Encoding`. The compressed one has an entity tag of its own (RFC 9110, section
        8.8.3.3), and is made when it is first asked for. None: that takes too long for the event loop
        (`compress_aside`).
        """
        if not self._varies or not accepts_gzip(accept_encoding):
            return self
        if self._compressed is None:
            if len(self.body) > LARGEST_AT_ONCE:
                return None
            self._take_compressed(compress(self.body))
        return self._compressed or self

    async def compress_aside(self) -> "CachedAnswer":
        """The form for a client that takes gzip; the plain one while too much is being compressed already."""
        if self._compressed is None:
            if not threads.has_room(len(self.body)):
                return self
            self._take_compressed(await threads.compress(self.body))
        return self._compressed or self

    def _take_compressed(self, body: bytes | None) -> None:
        if body is None:
            # From now on it is not tried again. The field `Vary` stays, because others may have tried before.
            self._varies = False
            return
        etag = gzip_etag(self.etag)
        changed = {b"content-length": b"%d" % len(body), b"etag": etag}
        headers = [(name, changed.get(name, value)) for name, value in self.head.headers]
        self._compressed = CachedAnswer([*headers, (b"content-encoding", b"gzip")], etag, body)

    def encode(self) -> bytes:
        return msgspec.msgpack.encode((self.head.headers, self.etag, self.body))

    @classmethod
    def decode(cls, raw: bytes) -> "CachedAnswer":
        return cls(*msgspec.msgpack.decode(raw, type=tuple[list[tuple[bytes, bytes]], bytes, bytes]))


def is_variant(key: str) -> bool:
    """Whether a key is that of an address with a query."""
    return "?" in key


def is_kept(key: str, answer: CachedAnswer) -> bool:
    """Whether an answer is small enough for its key."""
    return len(answer.body) <= (MAX_VARIANT_BYTES if is_variant(key) else MAX_BYTES)
