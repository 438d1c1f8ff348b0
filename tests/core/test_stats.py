"""`/v1/admin/stats`: what all processes have counted, summed in rows whose number they do not change."""

import asyncio
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from fastapi import FastAPI

from app import __version__
from app.kernel.database import Database
from app.kernel.metric_history import (
    COARSE_STEP,
    FINE_STEP,
    HTTP_COUNTS,
    MetricReporter,
    add_samples,
    percentile,
    read_totals,
)
from app.kernel.observability.telemetry import DURATION_BUCKETS
from tests.fixtures.people import Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually
from tests.jobs.conftest import StartWorker
from tests.jobs.kinds import Producer, Steps

WINDOWS = {"15m": (30, 30), "1h": (60, 60), "8h": (300, 96), "24h": (900, 96)}


async def sums(admin: Person, window: str = "15m") -> dict[str, int]:
    points = (await admin.get(f"/v1/admin/stats?window={window}")).json()["points"]
    return {name: sum(point[name] for point in points) for name in ("requests", "client_errors", "statements")}


async def add(db: Database, **samples: list[int]) -> None:
    async with db.statement("test.samples") as tx:
        await add_samples(tx, {name.replace("__", "/"): counts for name, counts in samples.items()})


@pytest.mark.parametrize(
    ("cumulative", "part", "seconds"),
    [
        ([], 0.5, None),
        ([0, 0, 0], 0.5, None),
        ([10, 10, 10], 0.5, 0.5),
        ([0, 10, 10], 0.5, 1.5),
        ([0, 10, 10], 1.0, 2.0),
        ([5, 10, 10], 0.5, 1.0),
        # In the last bucket, which has no end.
        ([0, 0, 10], 0.5, 2.0),
    ],
)
def test_a_percentile_lies_within_its_bucket(cumulative: list[int], part: float, seconds: float | None) -> None:
    assert percentile([1.0, 2.0, float("inf")][:2], cumulative, part) == seconds


async def test_requests_are_counted_once_for_all_windows(admin: Person, db: Database) -> None:
    reporter = MetricReporter(db, "api", __version__)
    await reporter.report()
    before = await sums(admin)
    for _ in range(3):
        assert (await admin.get("/v1/users/me")).status_code == 200
    assert (await admin.get("/v1/jobs/nothing")).status_code == 422
    await reporter.report()
    after = {window: await sums(admin, window) for window in WINDOWS}
    # The reading before was counted too.
    assert after["15m"]["requests"] - before["requests"] == 5
    assert after["15m"]["client_errors"] - before["client_errors"] == 1
    assert after["15m"]["statements"] > before["statements"]
    assert all(found == after["15m"] for found in after.values())


@pytest.mark.parametrize("window", WINDOWS)
async def test_a_curve_has_a_point_for_each_step(admin: Person, window: str) -> None:
    step, count = WINDOWS[window]
    found = (await admin.get(f"/v1/admin/stats?window={window}")).json()
    times = [datetime.fromisoformat(point["at"]) for point in found["points"]]
    assert (found["window"], found["step_seconds"], len(times)) == (window, step, count)
    assert {later - earlier for earlier, later in pairwise(times)} == {timedelta(seconds=step)}
    assert (found["points"][0]["p95_ms"], found["jobs"], found["deployments"]) == (None, [], [])


async def test_reports_of_many_processes_are_summed_in_the_same_rows(
    admin: Person, db: Database, connection: Connection
) -> None:
    counts = [10, 2, 1, 0, 0, 6, 4, 30, 1, 2, 1, *([0] * 9), *([10] * (len(DURATION_BUCKETS) - 8))]
    assert len(counts) == len(HTTP_COUNTS) + len(DURATION_BUCKETS) + 1
    await asyncio.gather(*(add(db, http=counts, job__a=[1, 1, 1], start__api__2=[1]) for _ in range(4)))
    # At the end of a step they are two.
    rows = await connection.fetchval("SELECT count(*) FROM kernel.metric_samples WHERE step = $1", FINE_STEP)
    assert rows in (3, 6)
    found: dict[str, Any] = (await admin.get("/v1/admin/stats")).json()
    (point, *_) = [point for point in found["points"][-2:] if point["requests"]]
    total = sum(point["requests"] for point in found["points"])
    assert total == 40
    assert (point["pool_used"], point["pool_size"]) == (2.0, 3.0)
    # The ninth bucket ends at 50 ms and begins at 25 ms.
    assert 25 < point["p50_ms"] < point["p95_ms"] < point["p99_ms"] <= 100
    assert [(job["kind"], job["runs"], job["failures"]) for job in found["jobs"]] == [("a", 4, 4)]
    assert sum(item["processes"] for item in found["deployments"]) == 4
    assert {(item["role"], item["version"]) for item in found["deployments"]} == {("api", "2")}


async def test_what_is_old_is_forgotten_by_the_next_report(db: Database, connection: Connection) -> None:
    await connection.execute(
        """
        INSERT INTO kernel.metric_samples (step, at, subject, counts)
        SELECT step, now() - make_interval(secs => seconds), 'http', '{1}'
        FROM (VALUES (30, 3600), (30, 4000), (300, 4000), (300, 86400), (300, 90000)) AS old(step, seconds)
        """
    )
    await add(db, http=[1])
    rows = await connection.fetch("SELECT step, count(*) FROM kernel.metric_samples GROUP BY step ORDER BY step")
    assert [tuple(row) for row in rows] == [(FINE_STEP, 2), (COARSE_STEP, 3)]


async def test_runs_of_jobs_are_counted_by_kind(
    admin: Person, producer: Producer, start_worker: StartWorker, steps: Steps, app: FastAPI
) -> None:
    before = read_totals().get("job/test.hopeless", [0, 0])[:2]
    await start_worker()
    async with producer.db.statement("test.enqueue") as tx:
        await producer.queue.enqueue(tx, "test.hopeless", {}, user_id=None)

    def is_counted() -> bool:
        runs, failures = read_totals().get("job/test.hopeless", [0, 0])[:2]
        return (runs - before[0], failures - before[1]) == (1, 1)

    await eventually(is_counted)


async def test_only_a_known_window_is_answered(admin: Person) -> None:
    for wrong in ("window=2h", "window=", "windows=1h"):
        assert (await admin.get(f"/v1/admin/stats?{wrong}")).status_code == 422
