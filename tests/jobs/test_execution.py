"""What becomes of a job: every way a run can end, with one worker or with two."""

import asyncio
import os
import socket
from datetime import timedelta
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest

from app.identity.api import operator
from app.jobs.api import retry_any_job
from app.kernel.clock import SystemClock
from app.kernel.ids import UserId, new_id
from app.settings import Settings
from app.worker import Worker, open_worker
from tests.fixtures.waiting import eventually
from tests.jobs.conftest import StartWorker
from tests.jobs.kinds import Steps, kinds_of

pytestmark = pytest.mark.smoke

WORKER_ID = f"{socket.gethostname()}:{os.getpid()}"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def enqueue(worker: Worker, kind: str, number: int = 0, **options: Any) -> UUID:
    async with worker.db.statement("test.enqueue") as tx:
        return await worker.queue.enqueue(tx, kind, {"number": number}, user_id=UserId(new_id()), **options)


async def failures(connection: Connection, job_id: UUID) -> list[tuple[Any, ...]]:
    """What is on file about the failed runs of a job."""
    rows = await connection.fetch(
        "SELECT n, outcome, error->>'code', worker_id, started_at <= ended_at FROM jobs.attempts "
        "WHERE job_id = $1 ORDER BY n",
        job_id,
    )
    return [tuple(row) for row in rows]


async def row(connection: Connection, job_id: UUID) -> dict[str, Any]:
    found = await connection.fetchrow("SELECT * FROM jobs.jobs WHERE id = $1", job_id)
    assert found is not None
    return dict(found)


async def ended(connection: Connection, job_id: UUID) -> dict[str, Any]:
    async def is_over() -> bool:
        return bool((await row(connection, job_id))["state"] >= 2)

    await eventually(is_over)
    return await row(connection, job_id)


async def test_a_job_succeeds_with_its_result(worker: Worker, connection: Connection) -> None:
    job_id = await enqueue(worker, "test.noop", 7)
    job = await ended(connection, job_id)
    assert (job["state"], job["attempt"], job["result"], job["error"]) == (2, 1, '{"number": 7}', None)
    assert job["run_token"] is None
    assert job["lease_until"] is None
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]


async def test_a_failing_job_is_tried_again(worker: Worker, connection: Connection, steps: Steps) -> None:
    steps.failures_left = 2
    job = await ended(connection, await enqueue(worker, "test.flaky", max_attempts=3))
    assert (job["state"], job["attempt"], job["result"], job["error"]) == (2, 3, '{"attempt": 3}', None)
    assert len(steps.started) == 3
    assert await failures(connection, job["id"]) == [(n, "retried", "internal_error", WORKER_ID, True) for n in (1, 2)]


async def test_a_job_fails_for_good_after_its_last_attempt(
    worker: Worker, connection: Connection, steps: Steps
) -> None:
    steps.failures_left = 9
    job = await ended(connection, await enqueue(worker, "test.flaky", max_attempts=3))
    assert (job["state"], job["attempt"]) == (3, 3)
    assert job["error"] == '{"code": "internal_error", "message": "An unexpected error occurred (RuntimeError)."}'
    assert len(steps.started) == 3
    assert [(n, outcome) for n, outcome, *_ in await failures(connection, job["id"])] == [
        (1, "retried"),
        (2, "retried"),
        (3, "failed"),
    ]


async def test_only_failed_runs_are_noted(worker: Worker, connection: Connection, steps: Steps) -> None:
    await ended(connection, await enqueue(worker, "test.noop"))
    steps.started.clear()
    await ended(connection, await enqueue(worker, "test.snooze"))
    waiting = await enqueue(worker, "test.wait")
    await eventually(lambda: steps.started[-1:] == [waiting])
    worker.runner.cancel(waiting, "cancelled")
    await ended(connection, waiting)
    assert await connection.fetchval("SELECT count(*) FROM jobs.attempts") == 0


async def test_the_failures_of_a_replayed_job_are_all_kept(worker: Worker, connection: Connection) -> None:
    job_id = await enqueue(worker, "test.hopeless")
    await ended(connection, job_id)
    await retry_any_job(worker.db, worker.queue, worker.relay._cache, SystemClock(), operator("test"), job_id)
    await ended(connection, job_id)
    assert await failures(connection, job_id) == [(n, "failed", "hopeless", WORKER_ID, True) for n in (1, 2)]


async def test_a_run_that_fails_after_a_cancel_was_asked_for_is_noted(
    worker: Worker, connection: Connection, steps: Steps
) -> None:
    steps.failures_left = 1
    job_id = await enqueue(worker, "test.flaky", run_at=SystemClock().now() + timedelta(seconds=0.8))
    await connection.execute("UPDATE jobs.jobs SET cancel_requested_at = now() WHERE id = $1", job_id)
    assert (await ended(connection, job_id))["state"] == 4
    assert await failures(connection, job_id) == [(1, "cancelled", "internal_error", WORKER_ID, True)]


async def test_a_permanent_error_is_not_tried_again(worker: Worker, connection: Connection, steps: Steps) -> None:
    job = await ended(connection, await enqueue(worker, "test.hopeless"))
    assert (job["state"], job["attempt"]) == (3, 1)
    assert job["error"] == '{"code": "hopeless", "message": "This never works."}'
    assert len(steps.started) == 1


async def test_a_job_that_takes_too_long_is_stopped(worker: Worker, connection: Connection) -> None:
    job = await ended(connection, await enqueue(worker, "test.slow", max_attempts=1, timeout_s=1))
    assert (job["state"], job["attempt"]) == (3, 1)
    assert job["error"] == '{"code": "timeout", "message": "The job took longer than 1 s."}'


async def test_a_snoozed_job_uses_no_attempt(worker: Worker, connection: Connection, steps: Steps) -> None:
    job = await ended(connection, await enqueue(worker, "test.snooze"))
    assert (job["state"], job["attempt"], job["result"]) == (2, 1, '{"attempt": 1}')
    assert len(steps.started) == 3


async def test_a_scheduled_job_starts_when_it_is_due(worker: Worker, connection: Connection) -> None:
    run_at = await connection.fetchval("SELECT now() + interval '0.6 seconds'")
    job = await ended(connection, await enqueue(worker, "test.noop", run_at=run_at))
    assert run_at <= job["started_at"]


async def test_a_unique_key_names_one_living_job(worker: Worker, connection: Connection, steps: Steps) -> None:
    user_id = UserId(new_id())

    async def submit() -> UUID:
        async with worker.db.statement("test.enqueue") as tx:
            return await worker.queue.enqueue(tx, "test.wait", {}, user_id=user_id, unique_key="one")

    first, second, third = await asyncio.gather(submit(), submit(), submit())
    assert first == second == third
    steps.gate.set()
    await ended(connection, first)
    assert await submit() != first


async def test_a_handler_can_end_its_job_in_its_own_transaction(
    worker: Worker, connection: Connection, steps: Steps
) -> None:
    await connection.execute("CREATE TABLE effects (job_id uuid)")
    steps.gate.set()
    job_id = await enqueue(worker, "test.effect")
    job = await ended(connection, job_id)
    assert (job["state"], job["result"]) == (2, '{"done": true}')
    assert await connection.fetchval("SELECT count(*) FROM effects") == 1


async def test_sigterm_hands_a_long_job_to_another_worker_at_once(
    start_worker: StartWorker, connection: Connection, steps: Steps
) -> None:
    first = await start_worker()
    job_id = await enqueue(first, "test.wait")
    await eventually(lambda: len(steps.started) == 1)
    second = await start_worker()
    await first.drain()
    assert first.runner.tasks == {}
    await eventually(lambda: len(steps.started) == 2)
    steps.gate.set()
    job = await ended(connection, job_id)
    # It was handed over, not rescued when its lease had ended.
    assert (job["state"], job["attempt"], job["rescues"]) == (2, 1, 0)
    assert steps.started == [job_id, job_id]
    assert steps.ended == [job_id]
    await eventually(lambda: second.runner.tasks == {})


async def test_a_worker_that_closes_without_draining_leaves_nothing_running(
    settings: Settings, connection: Connection, steps: Steps
) -> None:
    async with open_worker(settings, kinds_of(steps)) as worker:
        job_id = await enqueue(worker, "test.wait")
        await eventually(lambda: len(steps.started) == 1)
        (run,) = worker.runner.tasks.values()
    assert run.cancelled()
    # As after a crash: the row keeps its lease, and the worker that finds it expired goes on.
    job = await row(connection, job_id)
    assert (job["state"], job["attempt"], job["run_token"] is None) == (1, 1, False)


async def test_a_run_that_lost_its_lease_changes_nothing(worker: Worker, connection: Connection, steps: Steps) -> None:
    job_id = await enqueue(worker, "test.wait")
    await eventually(lambda: len(steps.started) == 1)
    await connection.execute(
        "UPDATE jobs.jobs SET run_token = gen_random_uuid(), worker_id = 'another' WHERE id = $1", job_id
    )
    steps.gate.set()
    await eventually(lambda: worker.runner.tasks == {})
    job = await row(connection, job_id)
    assert (job["state"], job["worker_id"], job["result"]) == (1, "another", None)


async def test_an_expired_lease_is_rescued_and_a_poison_job_stopped(
    start_worker: StartWorker, connection: Connection, steps: Steps
) -> None:
    worker = await start_worker(heartbeat=60.0)
    job_id = await enqueue(worker, "test.wait")
    for rescues in (1, 2):
        await eventually(lambda count=rescues: len(steps.started) == count)  # type: ignore[misc]
        await connection.execute("UPDATE jobs.jobs SET lease_until = now() - interval '1 s' WHERE id = $1", job_id)
        worker.runner.cancel(job_id, "lease_lost")
        await eventually(lambda: worker.runner.tasks == {})
        assert await worker.relay.rescue() == 1
        assert (await row(connection, job_id))["rescues"] == rescues
    await eventually(lambda: len(steps.started) == 3)
    await connection.execute("UPDATE jobs.jobs SET lease_until = now() - interval '1 s' WHERE id = $1", job_id)
    assert await worker.relay.rescue() == 1
    job = await row(connection, job_id)
    assert (job["state"], job["rescues"], job["attempt"]) == (3, 3, 3)
    assert job["error"] == '{"code": "worker_lost", "message": "The worker that ran this job disappeared."}'
    assert await failures(connection, job_id) == [(n, "lost", "worker_lost", WORKER_ID, True) for n in (1, 2, 3)]
