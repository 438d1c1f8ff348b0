"""How full the lanes are, as the relay reports it, and what one user may have in them for that."""

import math
from collections.abc import Sequence
from time import monotonic

import msgspec

from app.jobs.errors import BacklogFull
from app.jobs.records import ALWAYS_ADMITTED, LaneDepth
from app.jobs.settings import JobsSettings
from app.kernel.queue import Allowance
from app.kernel.redis.bus import Bus
from app.kernel.redis.gateway import RedisUnavailable

_CHANNEL = "jobs:lanes"
_BELIEVED_SECONDS = 30.0
_LONGEST_RETRY = 3600
# Of a lane that is full each user still has this part, and at least one job.
_PART_OF_A_USER = 1000
# Waiting jobs of a lane that the relay and administrators are told of; what the last resort needs is less.
COUNTED = 100_000
# Only beyond so many times the limit are users refused who have nothing in the lane.
_LAST_RESORT = 2


class LaneReport(msgspec.Struct, frozen=True):
    """The state of a lane. `rate` is in jobs per second."""

    lane: str
    waiting: int
    rate: float


class LaneBoard:
    """The newest reports. One per API process, to be made before the bus starts."""

    def __init__(self, bus: Bus, settings: JobsSettings) -> None:
        self._settings = settings
        self._reports: dict[str, LaneReport] = {}
        self._read_at = 0.0
        bus.subscribe(_CHANNEL, self._on_message)

    def allow(self, lane: str) -> Allowance | None:
        """What one user may have unfinished in a lane: as much as is free (dynamic thresholds), a small part if
        nothing is.

        Raises:
            BacklogFull: the lane takes no more jobs of any user.
        """
        if lane in ALWAYS_ADMITTED:
            return None
        jobs, limit = self._settings.user_backlog, self._settings.backlog_limit
        report = self._report(lane)
        if report is not None:
            if report.waiting >= min(_LAST_RESORT * limit, COUNTED):
                raise self.refusal(lane)
            jobs = min(jobs, max(limit - report.waiting, limit // _PART_OF_A_USER, 1))
        return Allowance(jobs, self._settings.backlog_age)

    def refusal(self, lane: str) -> BacklogFull:
        """With an estimate of when there is room again."""
        report = self._report(lane)
        seconds = _LONGEST_RETRY
        if report is not None and report.rate > 0:
            excess = max(1, report.waiting - self._settings.backlog_limit + 1)
            seconds = min(math.ceil(excess / report.rate), _LONGEST_RETRY)
        return BacklogFull("Wait until some of your unfinished jobs have ended.", retry_after=max(seconds, 1))

    @property
    def user_backlog(self) -> int:
        """Unfinished jobs that one user may have in a lane, however empty it is."""
        return self._settings.user_backlog

    def _report(self, lane: str) -> LaneReport | None:
        return self._reports.get(lane) if monotonic() - self._read_at <= _BELIEVED_SECONDS else None

    def _on_message(self, payload: bytes) -> None:
        self._reports = {report.lane: report for report in msgspec.json.decode(payload, type=list[LaneReport])}
        self._read_at = monotonic()


async def publish_lanes(bus: Bus, depths: Sequence[LaneDepth]) -> None:
    """Tells all API processes how full the lanes are."""
    reports = [
        LaneReport(
            lane=depth.lane,
            waiting=depth.waiting,
            rate=depth.finished / 60,
        )
        for depth in depths
    ]
    try:
        await bus.publish(_CHANNEL, msgspec.json.encode(reports))
    except RedisUnavailable:
        return
