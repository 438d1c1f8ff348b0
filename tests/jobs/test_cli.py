"""`python -m app jobs …` against the test's own servers."""

import json
from typing import TypeAlias
from uuid import uuid4

import asyncpg

from app.kernel.ids import new_id
from tests.fixtures.shell import Shell
from tests.jobs.kinds import Producer

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def test_jobs_are_listed_shown_cancelled_and_retried(
    producer: Producer, connection: Connection, shell: Shell
) -> None:
    async with producer.db.statement("test.enqueue") as tx:
        job_id = await producer.queue.enqueue(tx, "test.noop", {}, user_id=None)
    assert (await shell("jobs", "list"))[1].split() == [str(job_id), "queued", "0/8", "default", "test.noop"]
    await connection.execute("UPDATE jobs.jobs SET run_at = now() + interval '1 hour'")
    assert json.loads((await shell("jobs", "show", str(job_id)))[1])["state"] == "scheduled"
    await connection.execute("UPDATE jobs.jobs SET run_at = now()")
    await connection.execute(
        """
        INSERT INTO jobs.attempts (job_id, n, started_at, ended_at, outcome, error, worker_id)
        VALUES ($1, 1, '2026-01-02T03:04:05Z', '2026-01-02T03:04:06Z', 'retried', '{"code": "timeout"}', 'host:1')
        """,
        job_id,
    )
    assert json.loads((await shell("jobs", "show", str(job_id)))[1])["attempts"] == [
        {
            "n": 1,
            "started_at": "2026-01-02T03:04:05Z",
            "ended_at": "2026-01-02T03:04:06Z",
            "outcome": "retried",
            "error": '{"code": "timeout"}',
            "worker_id": "host:1",
        }
    ]
    assert "cancelled" in (await shell("jobs", "cancel", str(job_id)))[1]
    assert "queued" in (await shell("jobs", "retry", str(job_id)))[1]
    code, text = await shell("jobs", "retry", str(job_id))
    assert (code, text) == (1, "Job not retryable\n")
    assert (await shell("jobs", "show", str(uuid4())))[0] == 1
    await connection.execute("UPDATE jobs.jobs SET state = 3, finished_at = now()")
    assert (await shell("jobs", "retry", "--failed"))[1] == "1 jobs run again.\n"
    assert (await shell("jobs", "retry"))[0] == 1


async def test_queues_are_listed_paused_and_resumed(connection: Connection, shell: Shell) -> None:
    await connection.execute(
        "INSERT INTO jobs.jobs (id, kind, lane, args) VALUES ($1, 'test.noop', 'bulk', '{}')", new_id()
    )
    assert (await shell("jobs", "pause", "bulk"))[1] == "bulk is paused.\n"
    lines = (await shell("jobs", "queues"))[1].splitlines()
    assert [line.split()[0] for line in lines] == ["queue", "bulk", "critical", "default", "pdf", "webhooks"]
    assert lines[1].split() == ["bulk", "1", "0", "0", "paused"]
    assert (await shell("jobs", "resume", "bulk"))[0] == 0
    assert "paused" not in (await shell("jobs", "queues"))[1]
    assert (await shell("jobs", "pause", "fast")) == (1, "Queue not found\n")
