"""The only place that asks what time it is, so that tests can decide the answer."""

import time as system_time
from datetime import UTC, datetime
from time import clock_gettime, monotonic, time
from typing import Protocol

# Linux has it, and macOS has not.
CLOCK_BOOTTIME: int | None = getattr(system_time, "CLOCK_BOOTTIME", None)
OUT_OF_RANGE = "Not after 0001-01-01T00:00:00Z and before 9999-12-31T23:59:59.999999Z."
# The first and the last moment that Python can hold; to asyncpg they mean infinity, which comes back without a zone.
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def in_utc(moment: datetime) -> datetime:
    """An aware `moment` in UTC. Raises ValueError if it cannot be stored as such."""
    try:
        found = moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(OUT_OF_RANGE) from error
    if not _FIRST < found < _LAST:
        raise ValueError(OUT_OF_RANGE)
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


def elapsed() -> float:
    """Seconds of a clock that is never set and goes on while the machine sleeps, where the system has one."""
    return clock_gettime(CLOCK_BOOTTIME) if CLOCK_BOOTTIME is not None else monotonic()


class SteadyClock:
    """The time of PostgreSQL, by a clock of this machine that is never set.

    A step of the machine's wall clock, by hand or by a time server, changes nothing, and every process agrees about the
    end of a token, a session or a link. Until the database has told its time, it is what the wall clock showed when the
    process began.
    """

    def __init__(self) -> None:
        self._offset = time() - elapsed()

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.timestamp(), UTC)

    def timestamp(self) -> float:
        return elapsed() + self._offset

    def learn(self, told: datetime, asked_at: float, answered_at: float) -> None:
        """Takes over a time that the database told between two moments of `elapsed`.

        The true offset lies between the two bounds that follow from them, so one that lies there already is kept: the
        clock does not tremble with the round trips.
        """
        seconds = told.timestamp()
        self._offset = min(max(self._offset, seconds - answered_at), seconds - asked_at)
