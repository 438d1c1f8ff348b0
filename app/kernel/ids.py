"""Identifiers: UUIDv7 (RFC 9562), which sort by creation time and so keep index inserts local."""

from datetime import datetime
from typing import NewType
from uuid import UUID

from uuid_utils.compat import uuid7

UserId = NewType("UserId", UUID)


def first_id_of(moment: datetime) -> UUID:
    """The lowest id that can have been made at `moment`, or later within the same millisecond."""
    return UUID(int=int(moment.timestamp() * 1000) << 80)


def new_id() -> UUID:
    """A fresh UUIDv7; ids made by one process increase monotonically."""
    return uuid7()
