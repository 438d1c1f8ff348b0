"""A finished answer, as both levels keep it."""

import msgspec


class CachedAnswer(msgspec.Struct, frozen=True, array_like=True):
    """A finished 200 answer: raw header pairs, entity tag, and body."""

    headers: list[tuple[bytes, bytes]]
    etag: bytes
    body: bytes

    @property
    def size(self) -> int:
        """Bytes that are counted against the bound of the memory."""
        return len(self.body)
