"""gzip as a content coding (RFC 9110, section 8.4): which clients take it, what is worth it, and how it is made.

Compressing a text that holds a secret beside something the reader of the network can choose tells the secret by the
length (BREACH). So only answers to reads are compressed, none of those that `no-store` marks as credentials, and no
problem, which repeats parts of its request.
"""

import asyncio
import re
import zlib
from collections.abc import AsyncIterable, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

# Below, the headers weigh as much as the body, and all of it goes in one packet.
SMALLEST = 1024
# Above, compressing would hold up the event loop for a millisecond.
LARGEST_AT_ONCE = 64 * 1024
# The text under way to be compressed in threads, and the longest one; what is beyond goes out as it is.
_MOST_UNDER_WAY = 16 * 1024 * 1024
LARGEST = 8 * 1024 * 1024
# Beside those of asyncio, which serve files, names and metrics and must not wait behind long texts.
_pool = ThreadPoolExecutor(2, thread_name_prefix="gzip")
# Longer than any client's. An answer need not be compressed, so that what is longer is neither read nor kept.
_MAX_ACCEPT_ENCODING = 256
_GZIP = 16 + zlib.MAX_WBITS
_ZERO = re.compile(rb"q\s*=\s*0(\.0*)?")
_TEXTS = re.compile(
    rb"(text/(?!event-stream)|application/(json|javascript|x-ndjson|problem\+json|[a-z.-]+\+(json|xml))|image/svg\+xml)"
)


def is_compressible(content_type: bytes) -> bool:
    """Whether this is text; other files of ours are compressed in themselves."""
    return _TEXTS.match(content_type) is not None


def accepts_gzip(accept_encoding: bytes | None) -> bool:
    """By section 12.5.3, where several lines of the field have been joined to one list."""
    return accept_encoding is not None and len(accept_encoding) <= _MAX_ACCEPT_ENCODING and _names_gzip(accept_encoding)


@lru_cache(maxsize=64)
def _names_gzip(accept_encoding: bytes) -> bool:
    weights = {}
    for part in accept_encoding.lower().split(b","):
        coding, _, weight = part.partition(b";")
        # The older name means the same (section 8.4.1.3).
        weights[coding.strip().removeprefix(b"x-")] = weight.strip()
    weight = weights.get(b"gzip", weights.get(b"*", b"q=0"))
    return _ZERO.fullmatch(weight) is None


def gzip_etag(etag: bytes) -> bytes:
    """The strong tag of the compressed form of what has the strong tag `etag` (section 8.8.3.3)."""
    return etag[:-1] + b'-gzip"'


def compress(body: bytes) -> bytes | None:
    """The gzip form; None if it spares less than a quarter."""
    compressed = zlib.compress(body, 1, wbits=_GZIP)
    return compressed if len(compressed) <= len(body) * 3 // 4 else None


class Threads:
    """Compresses long texts beside the event loop, few of them at a time."""

    def __init__(self) -> None:
        self._under_way = 0

    def has_room(self, size: int) -> bool:
        """Whether a text of `size` bytes may be compressed now."""
        return size <= LARGEST and self._under_way + size <= _MOST_UNDER_WAY

    async def compress(self, body: bytes) -> bytes | None:
        """See `compress`."""
        self._under_way += len(body)
        try:
            return await asyncio.get_running_loop().run_in_executor(_pool, compress, body)
        finally:
            self._under_way -= len(body)


threads = Threads()


async def compress_stream(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The gzip form of a stream, a chunk at a time in a thread."""
    stream = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
    loop = asyncio.get_running_loop()
    async for chunk in chunks:
        part = await loop.run_in_executor(_pool, stream.compress, chunk)
        if part:
            yield part
    yield stream.flush()
