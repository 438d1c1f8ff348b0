"""Files and jobs go when their time is over, and nothing else does."""

import json
import os
import time
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg

from app.jobs.service.cleaning import (
    delete_orphans,
    expire_artifacts,
    expire_surplus,
    prune_attempts,
    prune_jobs,
    prune_messages,
)
from app.kernel.clock import SystemClock
from app.kernel.ids import UserId, new_id
from app.worker import Worker
from tests.fixtures.waiting import eventually
from tests.jobs.kinds import Producer, Steps

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def make_file(worker: Worker, connection: Connection, steps: Steps, user: UUID | None = None) -> UUID:
    steps.gate.set()
    async with worker.db.statement("test.enqueue") as tx:
        job_id = await worker.queue.enqueue(tx, "test.file", {"number": 9}, user_id=UserId(user or new_id()))

    async def is_over() -> bool:
        return bool(await connection.fetchval("SELECT state FROM jobs.jobs WHERE id = $1", job_id) == 2)

    await eventually(is_over)
    return job_id


def files(worker: Worker) -> list[Path]:
    return sorted(path for path in (worker.settings.data_dir / "artifacts").rglob("*") if path.is_file())


async def test_a_file_is_deleted_when_its_time_is_over(worker: Worker, connection: Connection, steps: Steps) -> None:
    old, young = [await make_file(worker, connection, steps) for _ in range(2)]
    assert len(files(worker)) == 2
    await connection.execute("UPDATE jobs.artifacts SET expires_at = now() WHERE job_id = $1", old)
    assert await expire_artifacts(worker.db, worker.store) == 1
    assert await expire_artifacts(worker.db, worker.store) == 0
    assert [path.parts[-3] for path in files(worker)] == [str(young)]
    rows = await connection.fetch("SELECT job_id, deleted_at IS NULL AS is_there FROM jobs.artifacts")
    assert {row["job_id"]: row["is_there"] for row in rows} == {old: False, young: True}


async def test_the_oldest_files_of_a_user_end_beyond_a_bound(
    worker: Worker, connection: Connection, steps: Steps
) -> None:
    jobs = [await make_file(worker, connection, steps) for _ in range(6)]
    # Three of one user; one alone that is larger than the bound; two that just fit.
    for number, (job_id, user, size) in enumerate(
        zip(jobs, (1, 1, 1, 2, 3, 3), (60, 50, 40, 900, 50, 50), strict=True)
    ):
        await connection.execute(
            """
            UPDATE jobs.artifacts SET user_id = $2, size = $3, created_at = now() + make_interval(secs => $4)
            WHERE job_id = $1
            """,
            *(job_id, UUID(int=user), size, number),
        )
    assert await expire_surplus(worker.db, 100) == 1
    assert await expire_surplus(worker.db, 100) == 0
    assert await expire_artifacts(worker.db, worker.store) == 1
    assert {path.parts[-3] for path in files(worker)} == set(map(str, jobs[1:]))


async def test_a_user_beyond_the_bound_gets_room_before_another_file_is_written(
    worker: Worker, connection: Connection, steps: Steps
) -> None:
    user = new_id()
    oldest, newer = [await make_file(worker, connection, steps, user) for _ in range(2)]
    other = await make_file(worker, connection, steps)
    # Together more than the ten GiB that are kept of one user.
    await connection.execute("UPDATE jobs.artifacts SET size = 6::bigint * 1024 ^ 3")
    newest = await make_file(worker, connection, steps, user)
    assert {path.parts[-3] for path in files(worker)} == {str(newer), str(other), str(newest)}
    rows = await connection.fetch("SELECT job_id FROM jobs.artifacts WHERE deleted_at IS NOT NULL")
    assert [row["job_id"] for row in rows] == [oldest]


async def test_old_jobs_are_deleted_once_their_files_are(worker: Worker, connection: Connection, steps: Steps) -> None:
    with_file, without_file, young = [await make_file(worker, connection, steps) for _ in range(3)]
    await connection.execute(
        "UPDATE jobs.jobs SET finished_at = now() - interval '31 days' WHERE id = ANY($1::uuid[])",
        [with_file, without_file],
    )
    await connection.execute("UPDATE jobs.artifacts SET deleted_at = now() WHERE job_id = $1", without_file)
    await connection.execute(
        """
        INSERT INTO jobs.attempts (job_id, n, started_at, ended_at, outcome, error, worker_id)
        SELECT id, 1, now(), now(), 'retried', '{}', 'x' FROM unnest($1::uuid[]) AS id
        """,
        [without_file, young],
    )
    assert await prune_jobs(worker.db, 30) == 1
    left = {row["id"] for row in await connection.fetch("SELECT id FROM jobs.jobs WHERE kind = 'test.file'")}
    assert left == {with_file, young}
    assert [row["job_id"] for row in await connection.fetch("SELECT job_id FROM jobs.attempts")] == [young]


async def test_old_failed_runs_of_a_job_that_goes_on_are_deleted(worker: Worker, connection: Connection) -> None:
    # Its id says that it was made in 2022.
    job_id = UUID("01800000-0000-7000-8000-000000000000")
    await connection.execute(
        "INSERT INTO jobs.jobs (id, kind, lane, args, run_at) VALUES ($1, 'x', 'bulk', '{}', now() + interval '1 day')",
        job_id,
    )
    await connection.execute(
        """
        INSERT INTO jobs.attempts (job_id, n, started_at, ended_at, outcome, error, worker_id)
        SELECT $1, n, now(), now() - n * interval '29 days', 'retried', '{}', 'x' FROM generate_series(1, 3) AS n
        """,
        job_id,
    )
    assert await prune_attempts(worker.db, SystemClock(), 30) == 2
    assert [row["n"] for row in await connection.fetch("SELECT n FROM jobs.attempts")] == [1]


async def test_what_a_crash_left_behind_is_found(worker: Worker, connection: Connection, steps: Steps) -> None:
    await make_file(worker, connection, steps)
    (published,) = files(worker)

    async def leave(name: str) -> Path:
        async with worker.store.create(uuid4(), uuid4(), name) as (_, file):
            await file.write(b"half")
        return next(path for path in files(worker) if path.name == name)

    old, young = await leave("old"), await leave("young")
    yesterday = time.time() - 90_000
    for path in (old, published):
        os.utime(path, (yesterday, yesterday))
    assert await delete_orphans(worker.db, worker.store, SystemClock()) == 1
    assert files(worker) == sorted([published, young])


async def test_a_run_that_fails_leaves_no_file(worker: Worker, connection: Connection, steps: Steps) -> None:
    async with worker.db.statement("test.enqueue") as tx:
        job_id = await worker.queue.enqueue(tx, "test.file", {"number": 9}, user_id=None)
    await eventually(lambda: steps.started == [job_id])
    worker.runner.cancel(job_id, "cancelled")
    await eventually(lambda: worker.runner.tasks == {})
    assert files(worker) == []
    assert await connection.fetchval("SELECT count(*) FROM jobs.artifacts") == 0


async def test_the_housekeeping_job_runs_by_the_clock(worker: Worker, connection: Connection) -> None:
    async def is_scheduled() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM jobs.schedules WHERE name = 'jobs.clean'"))

    await eventually(is_scheduled)
    await connection.execute("UPDATE jobs.schedules SET next_run_at = now()")

    async def result() -> Any:
        return await connection.fetchval("SELECT result FROM jobs.jobs WHERE kind = 'jobs.clean' AND state = 2")

    async def has_run() -> bool:
        return await result() is not None

    await eventually(has_run)
    assert json.loads(await result()) == {
        "jobs": 0,
        "orphans": 0,
        "surplus_artifacts": 0,
        "artifacts": 0,
        "attempts": 0,
        "webhook_messages": 0,
        "idempotency_keys": 0,
        "mail_sends": 0,
        "suppressions": 0,
    }


async def test_webhook_messages_go_with_their_deliveries(producer: Producer, connection: Connection) -> None:
    await connection.execute(
        """
        INSERT INTO jobs.webhook_messages (user_id, id, event_type, payload, created_at)
        SELECT md5(n::text)::uuid, md5(n::text)::uuid, 'user.updated', '{}', now() - make_interval(hours => n)
        FROM generate_series(1, 1300) AS n
        """
    )
    await connection.execute(
        """
        INSERT INTO jobs.webhook_deliveries (user_id, id, endpoint_id, message_id)
        SELECT user_id, id, id, id FROM jobs.webhook_messages
        """
    )
    # In two batches: 1,300 hours are 54 days and four hours.
    assert await prune_messages(producer.db, 10) == 1300 - 239
    for left in (
        await connection.fetchval("SELECT count(*) FROM jobs.webhook_messages"),
        await connection.fetchval("SELECT count(*) FROM jobs.webhook_deliveries"),
    ):
        assert left == 239
