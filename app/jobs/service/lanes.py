"""How full the lanes are: the relay tells, and API processes believe it, so that nobody is asked at each admission."""

import math
from collections.abc import Sequence
from time import monotonic

import msgspec

from app.jobs.errors import BacklogFull
from app.jobs.records import ALWAYS_ADMITTED, LaneDepth
from app.jobs.settings import JobsSettings
from app.kernel.bus import Bus
from app.kernel.redis import RedisUnavailable

_CHANNEL = "jobs:lanes"
_BELIEVED_SECONDS = 30.0
_LONGEST_RETRY = 3600


class LaneReport(msgspec.Struct, frozen=True):
    """The state of a lane. `rate` is in jobs per second."""

    lane: str
    waiting: int
    oldest_seconds: float
    rate: float


class LaneBoard:
    """The newest reports. One per API process, to be made before the bus starts."""

    def __init__(self, bus: Bus, settings: JobsSettings) -> None:
        self._settings = settings
        self._reports: dict[str, LaneReport] = {}
        self._read_at = 0.0
        bus.subscribe(_CHANNEL, self._on_message)

    def admit(self, lane: str) -> None:
        """Lets a new job in.

        Raises:
            BacklogFull: too much waits already, with an estimate of when that will be over.
        """
        report = self._reports.get(lane)
        if report is None or lane in ALWAYS_ADMITTED or monotonic() - self._read_at > _BELIEVED_SECONDS:
            return
        limit = self._settings.backlog_limit
        if report.waiting < limit and report.oldest_seconds < self._settings.backlog_age:
            return
        excess = max(1, report.waiting - limit + 1)
        seconds = math.ceil(excess / report.rate) if report.rate > 0 else _LONGEST_RETRY
        raise BacklogFull(
            f"{report.waiting} jobs of this kind are waiting.", retry_after=min(max(seconds, 1), _LONGEST_RETRY)
        )

    def _on_message(self, payload: bytes) -> None:
        self._reports = {report.lane: report for report in msgspec.json.decode(payload, type=list[LaneReport])}
        self._read_at = monotonic()


async def publish_lanes(bus: Bus, depths: Sequence[LaneDepth]) -> None:
    """Tells all API processes how full the lanes are."""
    reports = [
        LaneReport(
            lane=depth.lane,
            waiting=depth.waiting,
            oldest_seconds=depth.oldest_seconds or 0.0,
            rate=depth.finished / 60,
        )
        for depth in depths
    ]
    try:
        await bus.publish(_CHANNEL, msgspec.json.encode(reports))
    except RedisUnavailable:
        return
