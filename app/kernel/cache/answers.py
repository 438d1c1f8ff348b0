"""A finished answer, as both levels keep it, and its compressed form."""

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from app.kernel.heads import PreparedHead

_OK = 200
_NOT_MODIFIED = 304
# Below, the headers weigh as much as the body; above, compressing would hold up the event loop for a millisecond.
_COMPRESSED_SIZES = range(1024, 64 * 1024)
# Longer than any client's. An answer need not be compressed, so that what is longer is neither read nor kept.
_MAX_ACCEPT_ENCODING = 256
_GZIP = 16 + zlib.MAX_WBITS
_ZERO = re.compile(rb"q\s*=\s*0(\.0*)?")
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
        """The head of a 304 for who has this answer already (RFC 9110, section 15.4.5)."""
        if self._unchanged is None:
            kept = [header for header in self.head.headers if header[0] in _KEPT_UNCHANGED]
            self._unchanged = PreparedHead(_NOT_MODIFIED, kept)
        return self._unchanged

    @property
    def size(self) -> int:
        """Bytes in the memory of a process; half as many again as the body's for a compressed form."""
        return (len(self.body) * 3 // 2 if self._varies else len(self.body)) + _OVERHEAD

    @classmethod
    def of(cls, headers: Sequence[tuple[bytes, bytes]], etag: bytes, body: bytes) -> "CachedAnswer":
        """One that may be compressed for who accepts that."""
        return cls([*headers, _VARY] if len(body) in _COMPRESSED_SIZES else headers, etag, body)

    def accepted_by(self, accept_encoding: bytes) -> "CachedAnswer":
        """The form for this `Accept-Encoding`. The compressed one has an entity tag of its own (RFC 9110, section
        8.8.3.3), and is made when it is first asked for.
        """
        if not self._varies or len(accept_encoding) > _MAX_ACCEPT_ENCODING or not _accepts_gzip(accept_encoding):
            return self
        if self._compressed is None:
            self._compressed = self._compress()
        return self._compressed

    def _compress(self) -> "CachedAnswer":
        body = zlib.compress(self.body, 1, wbits=_GZIP)
        if len(body) > len(self.body) // 2:
            return self
        etag = self.etag[:-1] + b'-gzip"'
        changed = {b"content-length": b"%d" % len(body), b"etag": etag}
        headers = [(name, changed.get(name, value)) for name, value in self.head.headers]
        return CachedAnswer([*headers, (b"content-encoding", b"gzip")], etag, body)

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


@lru_cache(maxsize=64)
def _accepts_gzip(accept_encoding: bytes) -> bool:
    """By RFC 9110, section 12.5.3."""
    weights = {}
    for part in accept_encoding.lower().split(b","):
        coding, _, weight = part.partition(b";")
        weights[coding.strip()] = weight.strip()
    weight = weights.get(b"gzip", weights.get(b"*", b"q=0"))
    return _ZERO.fullmatch(weight) is None
