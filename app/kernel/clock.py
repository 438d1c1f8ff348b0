"""The only place that asks what time it is, so that tests can decide the answer."""

from datetime import UTC, datetime, timedelta
from time import time
from typing import Protocol

_OUT_OF_RANGE = "Not between the years 1 and 9999 in UTC."
# The first and the last moment that Python can hold; to asyncpg they mean infinity, which comes back without a zone.
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def in_utc(moment: datetime) -> datetime:
    """An aware `moment` in UTC. Raises ValueError if it cannot be stored as such."""
    try:
        found = moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(_OUT_OF_RANGE) from error
    if not _FIRST < found < _LAST:
        raise ValueError(_OUT_OF_RANGE)
    return found


class Clock(Protocol):
    """Tells the wall-clock time."""

    def now(self) -> datetime:
        """The present, timezone-aware, in UTC."""
        ...

    def timestamp(self) -> float:
        """The present in seconds of the epoch; cheaper than `now`."""
        ...


class SystemClock:
    """The operating system's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def timestamp(self) -> float:
        return time()


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, start: datetime) -> None:
        self._now = start

    def now(self) -> datetime:
        return self._now

    def timestamp(self) -> float:
        return self._now.timestamp()

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
