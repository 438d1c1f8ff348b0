"""How full the queues are, as the relay reports it, and what one user may have in them for that."""

import math
from collections.abc import Sequence
from time import monotonic

import msgspec

from app.jobs.errors import BacklogFull
from app.jobs.records import ALWAYS_ADMITTED, QueueDepth
from app.jobs.settings import JobsSettings
from app.kernel.queue import Allowance
from app.kernel.redis.bus import Bus
from app.kernel.redis.gateway import RedisUnavailable

_CHANNEL = "jobs:queues"
_BELIEVED_SECONDS = 30.0
_LONGEST_RETRY = 3600
# Of a queue that is full each user still has this part, and at least one job.
_PART_OF_A_USER = 1000
# Waiting jobs of a queue that the relay and administrators are told of; what the last resort needs is less.
COUNTED = 100_000
# Only beyond so many times the limit are users without a job in the queue refused.
_LAST_RESORT = 2


class BacklogReport(msgspec.Struct, frozen=True):
    """The state of a queue. `rate` is in jobs per second."""

    queue: str
    waiting: int
    rate: float


class QueueBacklogs:
    """The newest reports. One per API process, to be made before the bus starts."""

    def __init__(self, bus: Bus, settings: JobsSettings) -> None:
        self._settings = settings
        self._reports: dict[str, BacklogReport] = {}
        self._read_at = 0.0
        bus.subscribe(_CHANNEL, self._on_message)

    def allow(self, queue: str) -> Allowance | None:
        """What one user may have unfinished in a queue: as much as is free (dynamic thresholds), a small part if
        nothing is.

        Raises:
            BacklogFull: the queue takes no more jobs of any user.
        """
        if queue in ALWAYS_ADMITTED:
            return None
        jobs, limit = self._settings.user_backlog, self._settings.backlog_limit
        report = self._report(queue)
        if report is not None:
            if report.waiting >= min(_LAST_RESORT * limit, COUNTED):
                raise self.refusal(queue)
            jobs = min(jobs, max(limit - report.waiting, limit // _PART_OF_A_USER, 1))
        return Allowance(jobs, self._settings.backlog_age)

    def refusal(self, queue: str) -> BacklogFull:
        """With an estimate of when there is room again."""
        report = self._report(queue)
        seconds = _LONGEST_RETRY
        if report is not None and report.rate > 0:
            excess = max(1, report.waiting - self._settings.backlog_limit + 1)
            seconds = min(math.ceil(excess / report.rate), _LONGEST_RETRY)
        return BacklogFull("Wait until some of your unfinished jobs have ended.", retry_after=max(seconds, 1))

    @property
    def user_backlog(self) -> int:
        """Unfinished jobs that one user may have in a queue, however empty it is."""
        return self._settings.user_backlog

    def _report(self, queue: str) -> BacklogReport | None:
        return self._reports.get(queue) if monotonic() - self._read_at <= _BELIEVED_SECONDS else None

    def _on_message(self, payload: bytes) -> None:
        self._reports = {report.queue: report for report in msgspec.json.decode(payload, type=list[BacklogReport])}
        self._read_at = monotonic()


async def publish_backlogs(bus: Bus, depths: Sequence[QueueDepth]) -> None:
    """Tells all API processes how full the queues are."""
    reports = [
        BacklogReport(
            queue=depth.queue,
            waiting=depth.waiting,
            rate=depth.finished / 60,
        )
        for depth in depths
    ]
    try:
        await bus.publish(_CHANNEL, msgspec.json.encode(reports))
    except RedisUnavailable:
        return
