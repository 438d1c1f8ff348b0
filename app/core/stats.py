"""The numbers of the last minutes or hours, as curves."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import Any, Literal

from typing_extensions import TypeAliasType

from app.jobs.api import RUN_BUCKETS
from app.kernel.database import Database
from app.kernel.metric_history import (
    COARSE_STEP,
    FINE_STEP,
    HTTP,
    HTTP_COUNTS,
    JOB,
    JOB_COUNTS,
    START,
    MetricSample,
    get_time_of_step,
    list_samples,
    percentile,
    steps_between,
)
from app.kernel.observability.telemetry import DURATION_BUCKETS

StatsWindow = TypeAliasType("StatsWindow", Literal["15m", "1h", "8h", "24h"])


@dataclass(frozen=True, slots=True)
class _Curve:
    """How long a window is, how far apart its points are, and of which steps they are the sums; in seconds."""

    length: int
    step: int
    source: int


_CURVES: dict[StatsWindow, _Curve] = {
    "15m": _Curve(900, 30, FINE_STEP),
    "1h": _Curve(3_600, 60, FINE_STEP),
    "8h": _Curve(28_800, 300, COARSE_STEP),
    "24h": _Curve(86_400, 900, COARSE_STEP),
}
_MILLISECONDS = 1_000


async def read_stats(db: Database, window: StatsWindow) -> dict[str, Any]:
    """The answer of `GET /v1/admin/stats`."""
    curve = _CURVES[window]
    async with db.read("core.stats") as conn:
        last = await get_time_of_step(conn, curve.step)
        first = last - timedelta(seconds=curve.length - curve.step)
        samples = await list_samples(conn, curve.source, first)
    sums: defaultdict[str, defaultdict[datetime, list[int]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        number = int((sample.at - first).total_seconds()) // curve.step
        point = sums[sample.subject][first + timedelta(seconds=number * curve.step)]
        point[:] = _added(point, sample.counts)
    times = steps_between(first, last, curve.step)
    jobs = sorted(subject for subject in sums if subject.startswith(JOB))
    return {
        "window": window,
        "step_seconds": curve.step,
        "points": [_point(at, sums[HTTP].get(at, [])) for at in times],
        "jobs": [_job(subject.removeprefix(JOB), sums[subject], times) for subject in jobs],
        "deployments": list(_deployments(samples)),
    }


def _added(present: Sequence[int], counts: Sequence[int]) -> list[int]:
    return [left + right for left, right in zip_longest(present, counts, fillvalue=0)]


def _point(at: datetime, counts: Sequence[int]) -> dict[str, Any]:
    found = dict(zip(HTTP_COUNTS, [*counts, *[0] * len(HTTP_COUNTS)], strict=False))
    buckets = counts[len(HTTP_COUNTS) :]
    reports = max(1, found["reports"])
    return {
        "at": at,
        "requests": found["requests"],
        "client_errors": found["client_errors"],
        "server_errors": found["server_errors"],
        "p50_ms": _milliseconds(DURATION_BUCKETS, buckets, 0.5),
        "p95_ms": _milliseconds(DURATION_BUCKETS, buckets, 0.95),
        "p99_ms": _milliseconds(DURATION_BUCKETS, buckets, 0.99),
        "rejected": found["rejected"],
        "queued": found["queued"],
        "cache_hits": found["cache_hits"],
        "cache_misses": found["cache_misses"],
        "statements": found["statements"],
        "pool_used": found["pool_used"] / reports,
        "pool_size": (found["pool_used"] + found["pool_idle"]) / reports,
    }


def _job(kind: str, points: dict[datetime, list[int]], times: Sequence[datetime]) -> dict[str, Any]:
    def view(counts: Sequence[int]) -> dict[str, Any]:
        runs, failures = (*counts, 0, 0)[:2]
        buckets = counts[len(JOB_COUNTS) :]
        return {"runs": runs, "failures": failures, "p95_ms": _milliseconds(RUN_BUCKETS, buckets, 0.95)}

    total: list[int] = []
    for counts in points.values():
        total = _added(total, counts)
    return {"kind": kind, **view(total), "points": [{"at": at, **view(points.get(at, []))} for at in times]}


def _milliseconds(bounds: Sequence[float], buckets: Sequence[int], part: float) -> float | None:
    seconds = percentile(bounds, buckets, part)
    return None if seconds is None else round(seconds * _MILLISECONDS, 3)


def _deployments(samples: Iterable[MetricSample]) -> Iterable[dict[str, Any]]:
    for sample in samples:
        if sample.subject.startswith(START):
            _, role, version = sample.subject.split("/", 2)
            yield {"at": sample.at, "role": role, "version": version, "processes": sample.counts[0]}
