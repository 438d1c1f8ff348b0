"""The worker as a process, while everything around it fails: nothing is lost, nothing is done twice."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import httpx
import psutil
import pytest
import redis.asyncio

from app.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from app.jobs.api import insert_jobs
from app.kernel.database import Database
from app.kernel.observability.telemetry import trace_parent_var
from app.kernel.queue import Queue
from app.kernel.redis.gateway import RedisGateway
from app.settings import Settings, load_settings
from tests.faults.signals import frozen
from tests.fixtures.application import free_port
from tests.fixtures.http import http_client
from tests.fixtures.waiting import eventually, scaled
from tests.jobs.worker_process import TRACES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Process = asyncio.subprocess.Process
StartProcess = Callable[..., Awaitable[Process]]
Enqueue = Callable[..., Awaitable[list[UUID]]]

# A worker that stands still for a moment keeps its jobs.
FAST = {"APP_JOBS_LEASE": "4", "APP_JOBS_HEARTBEAT": "0.5", "APP_JOBS_DRAIN": "0.3"}


@pytest.fixture
async def start_process(environment: dict[str, str], connection: Connection) -> AsyncIterator[StartProcess]:
    """Starts workers as processes; `ready` is when one has begun to take jobs."""
    await connection.execute(TRACES)
    processes: list[Process] = []

    async def start(**variables: str) -> Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.jobs.worker_process"),
            cwd=ROOT,
            env=os.environ | environment | FAST | {"APP_LOG_FORMAT": "json"} | variables,
            stdout=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        assert process.stdout is not None
        async with asyncio.timeout(scaled(60)):
            started = b""
            while b"worker_ready" not in started:
                started += await process.stdout.readline()
                assert process.returncode is None
        process.started = started  # type: ignore[attr-defined]
        # From now on no test reads, so the pipe must not fill up.
        process.drained = asyncio.create_task(process.stdout.read())  # type: ignore[attr-defined]
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
    for process in processes:
        await asyncio.wait_for(process.wait(), scaled(30))
        await process.drained  # type: ignore[attr-defined]


@pytest.fixture
async def enqueue(settings: Settings) -> AsyncIterator[Enqueue]:
    """Enqueues as an API process does, in one transaction."""
    db = Database(settings.database)
    gateway = RedisGateway(settings.redis)
    queue = Queue(insert_jobs, gateway)
    queue.bind(db)
    await db.open()

    async def put(kind: str, count: int = 1, *, seconds: float = 0.0, **options: Any) -> list[UUID]:
        rows = [queue.new_job(kind, {"seconds": seconds}, user_id=None, **options) for _ in range(count)]
        async with db.statement("test.enqueue") as tx:
            return [done.id for done in await queue.enqueue_rows(tx, rows)]

    yield put
    await db.close()
    await gateway.close()


async def states(connection: Connection) -> dict[int, int]:
    rows = await connection.fetch("SELECT state, count(*) FROM jobs.jobs GROUP BY state")
    return {row["state"]: row["count"] for row in rows}


async def all_succeed(connection: Connection, count: int) -> None:
    async def done() -> bool:
        return await states(connection) == {2: count}

    await eventually(done)


async def running(connection: Connection, count: int) -> None:
    async def are_running() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM starts") >= count)

    await eventually(are_running)


async def effects(connection: Connection) -> list[int]:
    """How many effects each job had."""
    rows = await connection.fetch("SELECT count(*) FROM effects GROUP BY job_id")
    return [row["count"] for row in rows]


async def test_the_jobs_of_a_killed_worker_finish_elsewhere_once(
    start_process: StartProcess, enqueue: Enqueue, connection: Connection
) -> None:
    victim = await start_process()
    await enqueue("test.sleep", 20, seconds=1.5)
    await running(connection, 20)
    victim.kill()
    await start_process()
    await all_succeed(connection, 20)
    assert await effects(connection) == [1] * 20
    assert await connection.fetchval("SELECT count(*) FROM effects WHERE pid = $1", victim.pid) == 0
    rows = await connection.fetch("SELECT DISTINCT attempt, rescues FROM jobs.jobs")
    assert [tuple(row) for row in rows] == [(2, 1)]


async def test_sigterm_ends_short_jobs_and_hands_long_ones_over(
    start_process: StartProcess, enqueue: Enqueue, connection: Connection
) -> None:
    leaving = await start_process(APP_JOBS_DRAIN="1", APP_JOBS_LEASE="600")
    staying = await start_process(APP_JOBS_LEASE="600")
    staying.send_signal(signal.SIGSTOP)
    (long,) = await enqueue("test.sleep", seconds=2)
    await running(connection, 1)
    (short,) = await enqueue("test.sleep", seconds=0.1)
    await running(connection, 2)
    staying.send_signal(signal.SIGCONT)
    leaving.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(leaving.wait(), scaled(20)) == 0
    await all_succeed(connection, 2)
    rows = await connection.fetch("SELECT job_id, pid FROM starts ORDER BY at")
    assert [(row["job_id"], row["pid"]) for row in rows] == [
        (long, leaving.pid),
        (short, leaving.pid),
        (long, staying.pid),
    ]
    assert await effects(connection) == [1, 1]
    # It was handed over, not rescued when its lease had ended.
    rows = await connection.fetch("SELECT DISTINCT attempt, rescues FROM jobs.jobs")
    assert [tuple(row) for row in rows] == [(1, 0)]


async def test_a_flush_of_redis_loses_nothing(
    start_process: StartProcess, enqueue: Enqueue, connection: Connection, redis_url: str
) -> None:
    await start_process()
    await enqueue("test.sleep", 500, seconds=0.02)
    await running(connection, 50)
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await client.flushall()
    await all_succeed(connection, 500)
    assert await effects(connection) == [1] * 500


async def test_redis_may_stop_and_come_back_empty(
    start_process: StartProcess, enqueue: Enqueue, connection: Connection, valkey: EmbeddedValkey
) -> None:
    worker = await start_process()
    await enqueue("test.sleep", 200, seconds=0.02)
    await running(connection, 20)
    valkey.stop()
    await enqueue("test.sleep", 100)
    await all_succeed(connection, 300)
    valkey.start()
    async with redis.asyncio.Redis.from_url(valkey.url()) as client:
        await client.flushall()
    await enqueue("test.sleep", 100)
    await all_succeed(connection, 400)
    assert await effects(connection) == [1] * 400
    assert worker.returncode is None


async def test_no_job_fails_because_postgres_is_away(
    start_process: StartProcess,
    enqueue: Enqueue,
    connection: Connection,
    postgres: EmbeddedPostgres,
    database_url: str,
) -> None:
    worker = await start_process()
    await enqueue("test.sleep", 30, seconds=0.5)
    await enqueue("test.result", 30, seconds=0.5)
    await running(connection, 20)
    await connection.close()
    postgres.stop()
    await asyncio.sleep(3)
    postgres.start()
    again = await asyncpg.connect(database_url)
    try:
        await all_succeed(again, 60)
        assert await effects(again) == [1] * 30
        assert worker.returncode is None
    finally:
        await again.close()


async def test_a_frozen_worker_cannot_overwrite_what_happened_since(
    start_process: StartProcess, enqueue: Enqueue, connection: Connection
) -> None:
    zombie = await start_process()
    await enqueue("test.sleep", seconds=1.0)
    await enqueue("test.result", seconds=1.0)
    await running(connection, 2)
    zombie.send_signal(signal.SIGSTOP)
    other = await start_process()
    # If it froze inside a transaction, Postgres takes ten seconds more to end that.
    await all_succeed(connection, 2)
    before = await connection.fetch("SELECT id, result, version, finished_at FROM jobs.jobs ORDER BY id")
    zombie.send_signal(signal.SIGCONT)
    await asyncio.sleep(2)
    assert await connection.fetch("SELECT id, result, version, finished_at FROM jobs.jobs ORDER BY id") == before
    assert {row["result"] for row in before} == {f'{{"pid": {other.pid}}}'}
    assert await effects(connection) == [1]
    assert zombie.returncode is None


async def test_what_a_handler_logs_carries_its_job_and_the_trace_of_its_request(
    start_process: StartProcess, enqueue: Enqueue, connection: Connection
) -> None:
    worker = await start_process()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    (untraced,) = await enqueue("test.logged")
    trace_parent_var.set(trace)
    (traced,) = await enqueue("test.logged")
    await all_succeed(connection, 2)
    worker.send_signal(signal.SIGTERM)
    await worker.wait()
    lines = [json.loads(line) for line in (await worker.drained).splitlines()]  # type: ignore[attr-defined]
    said = {line["request_id"]: line.get("trace") for line in lines if line["event"] == "test.said"}
    assert said == {str(untraced): None, str(traced): trace}


async def test_a_worker_serves_its_metrics_when_asked_to(
    start_process: StartProcess, enqueue: Enqueue, connection: Connection
) -> None:
    port = free_port()
    worker = await start_process(APP_JOBS_METRICS_PORT=str(port))
    await enqueue("test.noop", 3)
    await all_succeed(connection, 3)
    async with http_client(f"http://127.0.0.1:{port}", timeout=scaled(20)) as client:
        answer = await client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        lines = answer.text.splitlines()
        assert 'onehop_jobs_finished_total{kind="test.noop",outcome="succeeded"} 3.0' in lines
        assert 'onehop_jobs_pickup_seconds_count{queue="default"} 3.0' in lines
        # httpx asks for gzip by itself.
        plain = await client.get("/metrics", headers={"Accept-Encoding": "gzip;q=0"})
        codings = [(found.headers.get("content-encoding"), found.headers["vary"]) for found in (answer, plain)]
        assert codings == [("gzip", "Accept-Encoding"), (None, "Accept-Encoding")]
        sizes = [int(found.headers["content-length"]) for found in (answer, plain)]
        assert sizes[0] <= sizes[1] * 3 // 4 < sizes[1] == len(plain.content)
        # A second worker with the same port has none, and works all the same.
        second = await start_process(APP_JOBS_METRICS_PORT=str(port))
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), scaled(20)) == 0
        with pytest.raises(httpx.ConnectError):
            await client.get("/metrics")
    await enqueue("test.noop", 3)
    await all_succeed(connection, 6)
    second.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(second.wait(), scaled(20)) == 0
    assert b"jobs.metrics_not_served" in second.started + await second.drained  # type: ignore[attr-defined]


HEALTHY = {
    "claims": "ok",
    "maintenance": "ok",
    "accepting": "ok",
    "heartbeat": "ok",
    "database": "ok",
    "schema": "ok",
    "redis": "ok",
}


async def probe(client: httpx.AsyncClient, path: str) -> tuple[int, str, dict[str, str]]:
    answer = await client.get(path)
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    return answer.status_code, body["status"], body["checks"]


async def test_a_worker_tells_its_health(start_process: StartProcess, connection: Connection) -> None:
    port = free_port()
    worker = await start_process(APP_JOBS_METRICS_PORT=str(port), APP_JOBS_LEASE="30")
    async with http_client(f"http://127.0.0.1:{port}", timeout=60) as client:
        assert await probe(client, "/livez") == (200, "alive", {"claims": "ok", "maintenance": "ok"})
        assert await probe(client, "/readyz") == (200, "ready", HEALTHY)
        newest = await connection.fetchval("SELECT version_num FROM alembic_version")

        async def has_schema(revision: str, expected: tuple[int, str, dict[str, str]]) -> None:
            await connection.execute("UPDATE alembic_version SET version_num = $1", revision)

            async def is_told() -> bool:
                return await probe(client, "/readyz") == expected

            await eventually(is_told, within=60)

        # Of a release before, of one to come, and the present one.
        await has_schema("0001_kernel", (503, "failing", HEALTHY | {"schema": "failing"}))
        await has_schema("a release to come", (200, "ready", HEALTHY))
        await has_schema(newest, (200, "ready", HEALTHY))
        assert (await client.get("/nothing")).status_code == 404
        assert (await client.post("/livez")).status_code == 405
    assert worker.returncode is None


@pytest.mark.timeout(300)
async def test_a_frozen_database_fails_readiness_and_restarts_nobody(
    start_process: StartProcess, postgres: EmbeddedPostgres
) -> None:
    port = free_port()
    await start_process(APP_JOBS_METRICS_PORT=str(port), APP_JOBS_LEASE="30")
    async with http_client(f"http://127.0.0.1:{port}", timeout=60) as client:

        async def is_ready() -> bool:
            return (await probe(client, "/readyz"))[0] == 200

        await eventually(is_ready, within=60)
        pid = postgres.pid()
        assert pid is not None
        with frozen(pid):

            async def is_unready() -> bool:
                status, _, checks = await probe(client, "/readyz")
                return (status, checks["database"], checks["schema"]) == (503, "failing", "failing")

            await eventually(is_unready, within=60)
            assert (await probe(client, "/livez"))[0] == 200
        await eventually(is_ready, within=60)


@pytest.mark.timeout(300)
async def test_a_claim_loop_that_is_stuck_fails_liveness(
    start_process: StartProcess, connection: Connection, valkey: EmbeddedValkey
) -> None:
    port = free_port()
    # Without Redis each look for jobs is a statement, which here waits for a lock.
    waits = {"APP_DATABASE_LOCK_TIMEOUT": "60", "APP_DATABASE_STATEMENT_TIMEOUT": "120"}
    await start_process(APP_JOBS_METRICS_PORT=str(port), APP_JOBS_MAX_STALL="2", **waits)
    valkey.stop()
    async with http_client(f"http://127.0.0.1:{port}", timeout=60) as client:

        async def is_alive() -> bool:
            return await probe(client, "/livez") == (200, "alive", {"claims": "ok", "maintenance": "ok"})

        async def is_stuck() -> bool:
            return await probe(client, "/livez") == (503, "failing", {"claims": "failing", "maintenance": "ok"})

        async def is_degraded() -> bool:
            return (await probe(client, "/readyz"))[2]["redis"] == "degraded"

        try:
            await eventually(is_degraded, within=60)
            await eventually(is_alive, within=60)
            async with connection.transaction():
                await connection.execute("LOCK TABLE jobs.jobs")
                await eventually(is_stuck, within=60)
            await eventually(is_alive, within=60)
        finally:
            valkey.start()


async def test_a_worker_listens_nowhere_by_default(start_process: StartProcess) -> None:
    worker = await start_process()
    listening = [item for item in psutil.Process(worker.pid).net_connections() if item.status == psutil.CONN_LISTEN]
    assert listening == []


async def test_the_urls_of_several_redis_servers_come_from_one_variable(environment: dict[str, str]) -> None:
    settings = load_settings(environment | {"APP_JOBS_REDIS_URLS": "redis://a:1/0, redis://:secret@b:2/0"})
    assert [url.get_secret_value() for url in settings.jobs.redis_urls] == ["redis://a:1/0", "redis://:secret@b:2/0"]
    assert "secret@" not in repr(settings.jobs)
