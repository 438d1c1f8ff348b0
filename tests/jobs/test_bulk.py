"""`POST /v1/admin/jobs/bulk`: all jobs that fit a filter are changed, each at most once, whatever is killed."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.jobs.queries import administration, searching, submitting
from app.jobs.service import bulk
from app.settings import Settings
from app.worker import Worker
from tests.architecture.source import ROOT
from tests.fixtures.people import Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually, scaled
from tests.jobs.conftest import StartWorker
from tests.jobs.rows import put_in

FAILED = {"state": 3, "error": {"code": "timeout", "message": "x"}, "attempt": 8}
BULK = "/v1/admin/jobs/bulk"
FILL = """
INSERT INTO jobs.jobs (id, kind, lane, args, state, attempt, finished_at, error)
SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'test.noop', 'bulk', '{}', 3, 8, now(),
       '{"code": "timeout", "message": "x"}'
FROM generate_series(1, $1::integer) AS n
"""


async def finished(admin: Person, job_id: str) -> dict[str, Any]:
    """The bulk job, once it is over."""

    async def is_over() -> bool:
        return (await admin.get(f"/v1/jobs/{job_id}")).json()["finished_at"] is not None

    await eventually(is_over)
    job: dict[str, Any] = (await admin.get(f"/v1/jobs/{job_id}")).json()
    return job


async def states(connection: Connection) -> list[int]:
    rows = await connection.fetch("SELECT state FROM jobs.jobs WHERE kind <> 'jobs.bulk' ORDER BY id")
    return [row["state"] for row in rows]


@pytest.fixture
async def rows(admin: Person, person: Person, connection: Connection) -> list[str]:
    """Jobs in every state; none of their queue is started."""
    await connection.execute("DELETE FROM jobs.jobs")
    await connection.execute("INSERT INTO jobs.lanes (lane, paused_at) VALUES ('bulk', now())")
    token = str(uuid4())
    wanted: list[dict[str, Any]] = [
        {"state": 0},
        {"state": 1, "run_token": token, "lease_until": "2100-01-01T00:00:00Z"},
        {"state": 2},
        FAILED,
        {"state": 4},
        FAILED | {"kind": "test.rare", "user_id": str(person.id)},
    ]
    return [await put_in(connection, number, **({"lane": "bulk"} | row)) for number, row in enumerate(wanted)]


@pytest.mark.parametrize(
    ("body", "matched", "after"),
    [
        ({"action": "retry", "filter": {"queue": "bulk"}}, 3, [0, 1, 2, 0, 0, 0]),
        ({"action": "retry", "filter": {"state": "failed"}}, 2, [0, 1, 2, 0, 4, 0]),
        ({"action": "retry", "filter": {"error": "timeout", "kind": "test.rare"}}, 1, [0, 1, 2, 3, 4, 0]),
        ({"action": "retry", "filter": {"state": "succeeded"}}, 0, [0, 1, 2, 3, 4, 3]),
        ({"action": "cancel", "filter": {"queue": "bulk"}}, 2, [4, 1, 2, 3, 4, 3]),
        ({"action": "cancel", "filter": {"state": "queued"}}, 1, [4, 1, 2, 3, 4, 3]),
        ({"action": "delete", "filter": {"since": "2024-01-01T00:00:00Z", "until": "2025-01-01T00:00:00Z"}}, 4, [0, 1]),
    ],
)
async def test_what_fits_is_counted_and_then_changed(
    admin: Person,
    worker: Worker,
    connection: Connection,
    rows: list[str],
    body: dict[str, Any],
    matched: int,
    after: list[int],
) -> None:
    before = await states(connection)
    counted = await admin.post(BULK, json=body | {"dry_run": True})
    assert (counted.status_code, counted.json()) == (200, {"matched": matched})
    assert await states(connection) == before
    answer = await admin.post(BULK, json=body)
    assert answer.status_code == 202, answer.text
    made = answer.json()["job"]
    assert (made["kind"], made["state"], answer.headers["location"]) == (
        *("jobs.bulk", "queued"),
        f"/v1/admin/jobs/{made['id']}",
    )
    job = await finished(admin, made["id"])
    assert (job["state"], job["result"]) == ("succeeded", {"done": matched, "skipped": 0})
    assert job["progress"] == {"done": matched, "total": matched, "message": None}
    assert await states(connection) == after
    entries = (await admin.get("/v1/auth/security-events")).json()["items"]
    (entry,) = [entry["data"] for entry in entries if entry["action"] == "jobs_changed_in_bulk"]
    assert entry["job_id"] == made["id"]
    assert entry["action"] == body["action"]
    assert entry.items() >= {name: value for name, value in body["filter"].items() if name in {"state", "kind"}}.items()


@pytest.mark.parametrize(
    ("action", "after"), [("retry", [0, 0, 2, 0, 0, 0, 0, 0]), ("cancel", [3, 4, 2, 3, 4, 4, 4, 4])]
)
async def test_jobs_with_an_error_are_changed_however_many_of_other_states_have_it(
    admin: Person,
    worker: Worker,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    after: list[int],
) -> None:
    """Whole batches of the error's jobs have nothing to be done with."""
    monkeypatch.setattr(bulk, "_BATCH", 2)
    await connection.execute("DELETE FROM jobs.jobs")
    await connection.execute("INSERT INTO jobs.lanes (lane, paused_at) VALUES ('bulk', now())")
    for number, state in enumerate([3, 0, 2, 3, 4, 0, 0, 0]):
        await put_in(connection, number, **FAILED | {"lane": "bulk", "state": state})
    body = {"action": action, "filter": {"error": "timeout"}}
    matched = {"retry": 3, "cancel": 4}[action]
    assert (await admin.post(BULK, json=body | {"dry_run": True})).json() == {"matched": matched}
    made = (await admin.post(BULK, json=body)).json()["job"]
    assert (await finished(admin, made["id"]))["result"] == {"done": matched, "skipped": 0}
    assert await states(connection) == after


async def test_a_filter_names_a_condition(admin: Person, connection: Connection) -> None:
    await connection.execute("DELETE FROM jobs.jobs")
    for body in (
        {"action": "delete", "filter": {}},
        {"action": "delete"},
        {"action": "x", "filter": {"queue": "bulk"}},
    ):
        assert (await admin.post(BULK, json=body)).status_code == 422
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs") == 0


async def test_what_is_asked_for_twice_with_one_key_is_one_job(admin: Person, connection: Connection) -> None:
    await connection.execute("DELETE FROM jobs.jobs")
    body = {"action": "cancel", "filter": {"queue": "bulk"}}
    answers = [await admin.post(BULK, json=body, headers={"Idempotency-Key": "x"}) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    # A count needs none, and refuses a key of another form all the same.
    wrong = await admin.post(BULK, json=body | {"dry_run": True}, headers={"Idempotency-Key": "x" * 256})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_idempotency_key")
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs") == 1


async def test_of_jobs_with_one_unique_key_one_is_started_over(
    admin: Person, worker: Worker, connection: Connection, rows: list[str]
) -> None:
    await connection.execute("DELETE FROM jobs.jobs")
    keyed = FAILED | {"lane": "bulk", "unique_key": "k"}
    for number in range(2):
        await put_in(connection, number, **keyed)
    await put_in(connection, 2, **keyed | {"kind": "test.lives"})
    await put_in(connection, 3, lane="bulk", kind="test.lives", unique_key="k")
    made = (await admin.post(BULK, json={"action": "retry", "filter": {"queue": "bulk"}})).json()["job"]
    assert (await finished(admin, made["id"]))["result"] == {"done": 1, "skipped": 2}
    assert await states(connection) == [3, 0, 3, 0]


async def test_a_running_job_is_told_to_stop(
    admin: Person, start_worker: StartWorker, steps: Any, connection: Connection
) -> None:
    await connection.execute("DELETE FROM jobs.jobs")
    await start_worker(heartbeat=60.0)
    job_id = await put_in(connection, 1, kind="test.wait")
    await eventually(lambda: steps.started == [UUID(job_id)])
    await admin.post(BULK, json={"action": "cancel", "filter": {"kind": "test.wait"}})

    async def is_cancelled() -> bool:
        return await states(connection) == [4]

    await eventually(is_cancelled)
    assert steps.ended == []


@pytest.mark.parametrize(("role", "status"), [("user", "active"), ("admin", "banned"), ("admin", "active")])
async def test_nothing_is_changed_for_an_account_that_is_not_as_it_was(
    admin: Person, start_worker: StartWorker, connection: Connection, rows: list[str], role: str, status: str
) -> None:
    """A role was taken, an account banned, or a password reset, because another person had the session."""
    before = await states(connection)
    made = (await admin.post(BULK, json={"action": "delete", "filter": {"queue": "bulk"}})).json()["job"]
    change = "UPDATE identity.accounts SET role = $2, status = $3, version = version + 1 WHERE user_id = $1"
    await connection.execute(change, admin.id, role, status)
    await start_worker()

    async def is_over() -> bool:
        return bool(await connection.fetchval("SELECT state > 2 FROM jobs.jobs WHERE id = $1", UUID(made["id"])))

    await eventually(is_over)
    error = await connection.fetchval("SELECT error ->> 'code' FROM jobs.jobs WHERE id = $1", UUID(made["id"]))
    assert error == "account_changed"
    assert await states(connection) == before


StartProcess = Callable[[], Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def start_process(settings: Settings, environment: dict[str, str]) -> AsyncIterator[StartProcess]:
    """Starts workers as processes, which can be killed."""
    started: list[asyncio.subprocess.Process] = []
    fast = {"APP_JOBS_LEASE": "4", "APP_JOBS_HEARTBEAT": "0.5", "APP_JOBS_DRAIN": "0.3"}

    async def start() -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app", "worker"),
            cwd=ROOT,
            env=os.environ | environment | fast,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), scaled(30))


@pytest.mark.slow
async def test_a_killed_worker_has_changed_no_job_twice_and_leaves_none_out(
    admin: Person, start_process: StartProcess, connection: Connection
) -> None:
    """The second of five batches waits for a row that is locked, and there its worker is killed."""
    await connection.execute("DELETE FROM jobs.jobs")
    await connection.execute("INSERT INTO jobs.lanes (lane, paused_at) VALUES ('bulk', now())")
    await connection.execute(FILL, 5_000)
    other_half = connection.transaction()
    await other_half.start()
    await connection.execute("SELECT id FROM jobs.jobs WHERE id = $1 FOR UPDATE", _id_of(3_500))
    made = (await admin.post(BULK, json={"action": "retry", "filter": {"state": "failed"}})).json()["job"]
    process = await start_process()

    async def waits() -> bool:
        done = await connection.fetchval("SELECT done FROM jobs.positions WHERE job_id = $1", UUID(made["id"]))
        return done == 1_000 and bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    await eventually(waits, within=60)
    process.kill()
    await process.wait()
    await other_half.rollback()
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE state = 0 AND lane = 'bulk'") == 1_000
    await start_process()
    job = await finished(admin, made["id"])
    assert (job["state"], job["result"]) == ("succeeded", {"done": 5_000, "skipped": 0})
    # Each start over is one version more.
    rows = await connection.fetch("SELECT state, version, count(*) FROM jobs.jobs WHERE lane = 'bulk' GROUP BY 1, 2")
    assert [tuple(row) for row in rows] == [(0, 2, 5_000)]


def _id_of(number: int) -> UUID:
    return UUID(f"01900000-0000-7000-8000-{number:012x}")


def test_a_job_forgets_the_same_whichever_way_it_is_started_over() -> None:
    def assigned(sql: str) -> set[str]:
        (text,) = re.findall(r"UPDATE jobs\.jobs AS j SET (.*?) (?:FROM|WHERE) ", " ".join(sql.split()))
        # When it is sent to a worker differs: one job at once, many by the relay.
        return {part for part in text.split(", ") if not part.startswith("dispatched_at")}

    ways = [
        assigned(sql) for sql in (submitting.REQUEUE_JOB, administration.REQUEUE_FAILED_JOBS, searching.REQUEUE_JOBS)
    ]
    assert ways == [ways[0]] * 3
    assert len(ways[0]) == 12
