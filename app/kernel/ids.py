"""Identifiers: UUIDv7 (RFC 9562), which sort by creation time and so keep index inserts local."""

from datetime import datetime
from typing import NewType
from uuid import UUID

from uuid_utils.compat import uuid7

UserId = NewType("UserId", UUID)


def first_id_of(moment: datetime, shift: float = 0.0) -> UUID:
    """The lowest id that can have been made `shift` seconds after `moment`, or later within the same millisecond. Of
    before 1970 there are none, and all are higher.
    """
    # Seconds, because a moment of the last year that a datetime knows has no later one.
    return UUID(int=max(0, int((moment.timestamp() + shift) * 1000)) << 80)


def new_id() -> UUID:
    """A fresh UUIDv7; ids made by one process increase monotonically."""
    return uuid7()
