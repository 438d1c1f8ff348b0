"""Identifiers: UUIDv7 (RFC 9562), which sort by creation time and so keep index inserts local."""

from typing import NewType
from uuid import UUID

from uuid_utils.compat import uuid7

UserId = NewType("UserId", UUID)


def new_id() -> UUID:
    """A fresh UUIDv7; ids made by one process increase monotonically."""
    return uuid7()
