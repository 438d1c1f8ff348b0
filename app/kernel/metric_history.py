"""What the processes have counted in the last day, in PostgreSQL, for those without a Prometheus.

Each process adds what it has counted since its last report to the rows of the present steps of time: one of 30 s, kept
for an hour, and one of five minutes, kept for a day. So there are some hundred rows of requests, and as many of each
kind of job, however many processes there are. A subject is `http`, `job/<kind>` or `start/<role>/<version>`.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate, zip_longest
from typing import Any

from prometheus_client import REGISTRY

from app.kernel.database import Database, ReadConn, Tx

REPORT_SECONDS = 10.0
FINE_STEP, COARSE_STEP = 30, 300
# For how long rows are kept, in seconds, by their step.
_KEPT = {FINE_STEP: 3_900, COARSE_STEP: 87_300}
HTTP = "http"
JOB = "job/"
START = "start/"
# The counts of `http` before its buckets.
HTTP_COUNTS = (
    *("requests", "client_errors", "server_errors", "rejected", "queued", "cache_hits", "cache_misses"),
    *("statements", "reports", "pool_used", "pool_idle"),
)
# Those of a job's kind.
JOB_COUNTS = ("runs", "failures")
_REQUESTS = "onehop_http_server_request_duration_seconds"
_RUNS = "onehop_jobs_run_seconds"
_READ = (
    *("onehop_jobs_finished_total", "onehop_cache_requests_total", "onehop_database_statements_total"),
    *("onehop_admission_rejected_total", "onehop_admission_queue_seconds_count", "onehop_database_pool_connections"),
)
_NAMES = {
    "onehop_admission_rejected_total": ("rejected",),
    "onehop_admission_queue_seconds_count": ("queued",),
    "onehop_database_statements_total": ("statements",),
}
_GAUGES = frozenset({"reports", "pool_used", "pool_idle"})
_CLIENT_ERROR, _SERVER_ERROR = 400, 500

Counts = dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class MetricSample:
    """What all processes have counted of a subject within a step that begins at this time."""

    at: datetime
    subject: str
    counts: list[int]


# Subjects are locked in their order. Each report also forgets what has been kept for long enough.
ADD_SAMPLES = """
WITH gone AS (
    DELETE FROM kernel.metric_samples AS s USING unnest($3::integer[], $4::integer[]) AS k(step, seconds)
    WHERE s.step = k.step AND s.at < now() - make_interval(secs => k.seconds)
)
INSERT INTO kernel.metric_samples AS s (step, at, subject, counts)
SELECT k.step, date_bin(make_interval(secs => k.step), now(), '2000-01-01T00:00:00Z'), n.subject, n.counts::bigint[]
FROM unnest($1::text[], $2::text[]) AS n(subject, counts) CROSS JOIN unnest($3::integer[]) AS k(step)
ORDER BY k.step, n.subject
ON CONFLICT (step, at, subject) DO UPDATE
SET counts = ARRAY(SELECT coalesce(c.present, 0) + coalesce(c.added, 0)
                   FROM unnest(s.counts, excluded.counts) WITH ORDINALITY AS c(present, added, number)
                   ORDER BY c.number)
"""


async def add_samples(tx: Tx, samples: Mapping[str, Sequence[int]]) -> None:
    """Adds counts to those of the present steps, by their subjects."""
    arrays = ["{" + ",".join(map(str, counts)) + "}" for counts in samples.values()]
    await tx.execute(ADD_SAMPLES, list(samples), arrays, list(_KEPT), list(_KEPT.values()))


LIST_SAMPLES = """
SELECT s.at, s.subject, s.counts FROM kernel.metric_samples AS s
WHERE s.step = $1 AND s.at >= $2
ORDER BY s.at, s.subject
"""


async def list_samples(conn: ReadConn, step: int, since: datetime) -> list[MetricSample]:
    """What was counted since then in steps of so many seconds, oldest first."""
    return [MetricSample(**row) for row in await conn.fetch(LIST_SAMPLES, step, since)]


GET_TIME_OF_STEP = """
SELECT date_bin(make_interval(secs => $1), now(), '2000-01-01T00:00:00Z')
"""


async def get_time_of_step(conn: ReadConn, step: int) -> datetime:
    """When the present step of so many seconds began."""
    began: datetime = await conn.fetchval(GET_TIME_OF_STEP, step)
    return began


class MetricReporter:
    """Reports what this process counts. One per process of a role that serves requests or runs jobs."""

    def __init__(self, db: Database, role: str, version: str) -> None:
        self._db = db
        self._start = f"{START}{role}/{version}"
        self._is_started = False
        self._reported: Counts = {}

    async def report(self) -> None:
        """Adds what was counted since the last report. What cannot be written now is part of the next one."""
        totals = await asyncio.to_thread(read_totals)
        changes = {subject: _change(subject, counts, self._reported.get(subject)) for subject, counts in totals.items()}
        changes = {subject: counts for subject, counts in changes.items() if any(counts)}
        if not self._is_started:
            changes[self._start] = [1]
        async with self._db.statement("kernel.report_metrics") as tx:
            await add_samples(tx, changes)
        self._reported = totals
        self._is_started = True


def read_totals() -> Counts:
    """What this process has counted since its start, by subject."""
    named: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    buckets: defaultdict[str, list[int]] = defaultdict(list)
    for (_, _, status), counts in _series_of(_REQUESTS):
        for name in _names_of_status(int(status)):
            named[HTTP][name] += sum(counts)
        buckets[HTTP] = [left + right for left, right in zip_longest(buckets[HTTP], counts, fillvalue=0)]
    for (kind,), counts in _series_of(_RUNS):
        named[JOB + kind]["runs"] += sum(counts)
        buckets[JOB + kind] = counts
    for family in REGISTRY.restricted_registry(_READ).collect():
        for sample in family.samples:
            subject = JOB + sample.labels["kind"] if "kind" in sample.labels else HTTP
            for name in _names_of(sample.name, sample.labels):
                named[subject][name] += int(sample.value)
    named[HTTP]["reports"] = 1
    return {
        subject: [
            *(counts[name] for name in (HTTP_COUNTS if subject == HTTP else JOB_COUNTS)),
            *accumulate(buckets[subject]),
        ]
        for subject, counts in named.items()
    }


def _series_of(histogram: str) -> Iterator[tuple[tuple[str, ...], list[int]]]:
    """The series of a histogram of this process: the values of its labels, and how much each bucket has got.

    There are hundreds, by routes and statuses. The public way makes an object of each bucket, which takes thirty times
    as long, which is a percent of a core.
    """
    metric: Any = REGISTRY._names_to_collectors.get(histogram)  # noqa: SLF001 - see above
    if metric is not None:
        for labels, series in list(metric._metrics.items()):  # noqa: SLF001
            yield labels, [int(bucket.get()) for bucket in series._buckets]  # noqa: SLF001


def _names_of_status(status: int) -> tuple[str, ...]:
    if status < _CLIENT_ERROR:
        return ("requests",)
    return ("requests", "client_errors" if status < _SERVER_ERROR else "server_errors")


def _names_of(series: str, labels: Mapping[str, str]) -> tuple[str, ...]:
    """The counts that a series is part of."""
    match series:
        case "onehop_cache_requests_total":
            return {"hit": ("cache_hits",), "miss": ("cache_misses",)}.get(labels["result"], ())
        case "onehop_database_pool_connections":
            return (f"pool_{labels['state']}",)
        case "onehop_jobs_finished_total":
            return ("failures",) if labels["outcome"] == "failed" else ()
        case _:
            return _NAMES.get(series, ())


def _change(subject: str, counts: list[int], reported: list[int] | None) -> list[int]:
    if reported is None:
        return counts
    # A family may have got its first series meanwhile.
    before = reported + [0] * (len(counts) - len(reported))
    changes = [now - then for now, then in zip(counts, before, strict=True)]
    if subject == HTTP:
        for index, name in enumerate(HTTP_COUNTS):
            if name in _GAUGES:
                changes[index] = counts[index]
    return changes


def percentile(bounds: Sequence[float], cumulative: Sequence[int], part: float) -> float | None:
    """The value below which a part of what was observed lies, by a straight line within its bucket; in the last one,
    which has no end, its beginning. None: nothing was observed.
    """
    if not cumulative or not cumulative[-1]:
        return None
    rank = part * cumulative[-1]
    lower, below = 0.0, 0
    for bound, count in zip(bounds, cumulative, strict=False):
        if count >= rank:
            return lower + (bound - lower) * (rank - below) / (count - below) if count > below else bound
        lower, below = bound, count
    return lower


def steps_between(first: datetime, last: datetime, step: int) -> list[datetime]:
    """The times at which steps of so many seconds begin, from `first` to `last`."""
    return [
        first + timedelta(seconds=step * number) for number in range(int((last - first).total_seconds()) // step + 1)
    ]
