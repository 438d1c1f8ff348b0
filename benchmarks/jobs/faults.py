"""`python -m benchmarks.jobs.faults`: what an outage costs, at full size; and a receiver of webhooks that drips."""

import asyncio
import http
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_bytes
from uuid import uuid4

import aiohttp
import asyncpg
import redis.asyncio
import uvloop
from aiohttp import web

from app.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from app.jobs.queries.webhook_endpoints import insert_endpoint
from app.jobs.records.webhooks import MAX_ENDPOINTS, SECRET_BYTES
from app.jobs.service.endpoints import SEAL_PURPOSE
from app.jobs.service.publishing import publish_event
from app.kernel.errors import AppError
from app.kernel.ids import UserId, new_id
from benchmarks.jobs.bench import Bench, run

_EFFECTS = "CREATE TABLE IF NOT EXISTS effects (job_id uuid NOT NULL)"
_PER_SECOND = 100
# Of one person at most three exports run at a time.
_PEOPLE = 25
_EXPORT = {"kind": "export.events", "args": {"format": "csv"}}
_LOCAL = {"APP_JOBS_WEBHOOK_ALLOW": "127.0.0.1/32", "APP_JOBS_WEBHOOK_HTTP": "true"}
_DRIP_SECONDS = 60
_DELIVERED_MS = 1000

# The effect of a job is its row in `effects`, or its file. One that was run twice without need counts as doubled.
_OUTCOME = """
SELECT count(*) AS jobs, count(*) FILTER (WHERE j.state = 2) AS succeeded,
       count(*) FILTER (WHERE e.count IS NULL AND a.job_id IS NULL) AS lost,
       count(*) FILTER (WHERE e.count > 1 OR (a.job_id IS NOT NULL AND j.attempt > 1)) AS doubled,
       count(*) FILTER (WHERE j.error IS NOT NULL) AS with_errors,
       (SELECT count(*) FROM unnest($1::uuid[]) AS id WHERE id NOT IN (SELECT k.id FROM jobs.jobs AS k)) AS missing
FROM jobs.jobs AS j
LEFT JOIN (SELECT job_id, count(*) FROM effects GROUP BY job_id) AS e ON e.job_id = j.id
LEFT JOIN jobs.artifacts AS a ON a.job_id = j.id
WHERE j.kind IN ('bench.effect', 'export.events')
"""

Submit = Callable[[], Awaitable[str]]


class Refused(Exception):
    """A job was not taken; the message says how."""


@dataclass
class Load:
    """What came of the jobs that were asked for: the ids and waits of those taken, and how the others were refused."""

    ids: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    async def ask(self, submit: Submit) -> None:
        began = time.perf_counter()
        try:
            self.ids.append(await submit())
        except Refused as error:
            self.refused[str(error)] += 1
        else:
            self.waits.append(time.perf_counter() - began)

    async def keep_up(self, submit: Submit) -> None:
        """Asks at an even pace, however long the answers take, until cancelled."""
        due = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self.ask(submit))
                due += 1 / _PER_SECOND
                await asyncio.sleep(max(0.0, due - time.perf_counter()))


async def measure_redis_flushed(bench: Bench, count: int = 5000) -> None:
    """Redis emptied with jobs in it."""
    await _prepare(bench)
    async with bench.workers(1):
        await bench.put("bench.effect", count, seconds=0.05)
        await bench.resources.redis.client.flushall()
        began = time.perf_counter()
        await bench.finished(count)
        spent = time.perf_counter() - began
    await _tell(bench, f"FLUSHALL with {count} queued", f"all done after {spent:.1f} s", lost_workers=0)


async def measure_redis_killed(bench: Bench, count: int = 5000) -> None:
    """Redis ended by SIGKILL with jobs in it, and started again with nothing."""
    await _prepare(bench)
    directory = Path(bench.environment["APP_DATA_DIR"]) / "valkey"
    server = EmbeddedValkey(directory)
    async with bench.workers(2) as workers:
        await bench.put("bench.effect", count, seconds=0.05)
        pid = (await bench.resources.redis.client.info("server"))["process_id"]
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(2)
        await asyncio.to_thread(server.start)
        async with redis.asyncio.Redis.from_url(server.url()) as client:
            await client.flushall()
        began = time.perf_counter()
        await bench.finished(count)
        spent = time.perf_counter() - began
        lost_workers = sum(worker.returncode is not None for worker in workers)
    await _tell(bench, f"Redis killed with {count} queued", f"all done {spent:.1f} s later", lost_workers=lost_workers)


async def measure_redis_stopped(bench: Bench, seconds: float = 30) -> None:
    """Redis away under the load of an API, and back empty."""
    server = EmbeddedValkey(Path(bench.environment["APP_DATA_DIR"]) / "valkey")
    async with bench.api() as base, aiohttp.ClientSession() as session:
        headers = [await _register(session, base, number) for number in range(_PEOPLE)]
        turns = itertools.cycle(headers)

        async def submit() -> str:
            try:
                async with session.post(f"{base}/v1/jobs", json=_EXPORT, headers=next(turns)) as answer:
                    if answer.status != http.HTTPStatus.ACCEPTED:
                        raise Refused(answer.status)
                    job: dict[str, str] = await answer.json()
                    return job["id"]
            except aiohttp.ClientError as error:
                raise Refused(type(error).__name__) from error

        await _outage(bench, "Redis", submit, server.stop, server.start, seconds, may_refuse=False)


async def measure_postgres_stopped(bench: Bench, seconds: float = 15) -> None:
    """Postgres away under load; what could not be enqueued then was refused, and is not counted as lost."""
    server = EmbeddedPostgres(Path(bench.environment["APP_DATA_DIR"]) / "postgres")

    async def submit() -> str:
        try:
            async with bench.resources.db.statement("bench.enqueue") as tx:
                return str(await bench.resources.queue.enqueue(tx, "bench.effect", {"seconds": 0.05}, user_id=None))
        except AppError as error:
            raise Refused(type(error).__name__) from error

    await _outage(bench, "Postgres", submit, server.stop, server.start, seconds, may_refuse=True)


async def _outage(
    bench: Bench,
    name: str,
    submit: Submit,
    stop: Callable[[], None],
    start: Callable[[], None],
    seconds: float,
    *,
    may_refuse: bool,
) -> None:
    await _prepare(bench)
    load = Load()
    async with bench.workers(2) as workers:
        loading = asyncio.create_task(load.keep_up(submit))
        await asyncio.sleep(4)
        await asyncio.to_thread(stop)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(start)
        bench.connection = await asyncpg.connect(bench.environment["DATABASE_URL"])
        await asyncio.sleep(4)
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        ended = time.perf_counter()
        async with asyncio.timeout(120):
            while await bench.connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE state < 2"):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        spent = time.perf_counter() - ended
        lost_workers = sum(worker.returncode is not None for worker in workers)
    refused = ", ".join(f"{count} {what}" for what, count in load.refused.items()) or "none"
    figures = (
        f"{len(load.ids)} accepted, refused: {refused}; slowest answer {max(load.waits) * 1000:.0f} ms; "
        f"all done {spent:.1f} s after the load ended"
    )
    await _tell(
        bench,
        f"{name} stopped for {seconds:.0f} s at {_PER_SECOND} jobs/s",
        figures,
        lost_workers=lost_workers,
        accepted=load.ids,
        ok=may_refuse or not load.refused,
    )


async def _prepare(bench: Bench) -> None:
    await bench.clear()
    await bench.connection.execute(_EFFECTS)
    await bench.connection.execute("TRUNCATE effects")


async def _tell(
    bench: Bench, name: str, figures: str, *, lost_workers: int, accepted: Sequence[str] = (), ok: bool = True
) -> None:
    row = await bench.connection.fetchrow(_OUTCOME, list(accepted))
    assert row is not None
    ok = ok and not lost_workers and row["succeeded"] == row["jobs"]
    ok = ok and row["lost"] == row["doubled"] == row["with_errors"] == row["missing"] == 0
    lost = row["lost"] + row["missing"]
    outcome = (
        f"{row['succeeded']} of {row['jobs']} succeeded, {lost} lost, {row['doubled']} doubled, "
        f"{row['with_errors']} with an error, {lost_workers} workers lost"
    )
    bench.tell(name, f"{outcome}; {figures}", ok=ok)


async def _register(session: aiohttp.ClientSession, base: str, number: int) -> dict[str, str]:
    body = {"email": f"load{number}-{new_id().hex}@example.com", "password": "correct horse battery staple"}
    async with session.post(f"{base}/v1/auth/register", json=body) as answer:
        answer.raise_for_status()
        token = (await answer.json())["tokens"]["access_token"]
    return {"Authorization": f"Bearer {token}"}


async def measure_dripping_receiver(bench: Bench, seconds: float = 30) -> None:
    """Deliveries to a receiver that is well, beside one that takes sixty seconds for an answer, byte by byte."""
    await bench.clear()
    resources, sent = bench.resources, dict[int, float]()
    async with _receivers() as (urls, received):
        user_id = UserId(uuid4())
        for url in urls:
            endpoint_id = new_id()
            async with resources.db.statement("benchmark.create_endpoint") as tx:
                resources.webhook_subscribers.add(tx, user_id)
                await insert_endpoint(
                    tx,
                    endpoint_id=endpoint_id,
                    user_id=user_id,
                    url=url,
                    event_types=["user.updated"],
                    description=None,
                    secret=resources.keys.encrypt(SEAL_PURPOSE, token_bytes(SECRET_BYTES), context=endpoint_id.bytes),
                    limit=MAX_ENDPOINTS,
                )
        async with bench.workers(1, **_LOCAL):
            for number in range(round(seconds * 20)):
                sent[number] = time.perf_counter()
                async with resources.db.transaction("bench.publish") as tx:
                    await publish_event(
                        tx,
                        resources.queue,
                        user_id,
                        "user.updated",
                        {"n": number},
                        event_id=new_id(),
                        now=resources.clock.now(),
                    )
                await asyncio.sleep(0.05)
            with suppress(TimeoutError):
                async with asyncio.timeout(10):
                    while len(received) < len(sent):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
    waits = sorted((received[number] - sent[number]) * 1000 for number in received)
    p50, p95 = (waits[int(len(waits) * q)] for q in (0.5, 0.95))
    bench.tell(
        f"beside a receiver that drips for {_DRIP_SECONDS} s",
        f"{len(received)} of {len(sent)} delivered, p50 {p50:.0f} ms   p95 {p95:.0f} ms   max {waits[-1]:.0f} ms",
        ok=len(received) == len(sent) and p95 < _DELIVERED_MS,
    )


@asynccontextmanager
async def _receivers() -> AsyncIterator[tuple[list[str], dict[int, float]]]:
    """Two addresses, one that drips and one that does not, and when each event first reached the second."""
    received: dict[int, float] = {}

    async def drip(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse()
        await response.prepare(request)
        # The sender goes away long before the end.
        with suppress(ConnectionResetError):
            for _ in range(_DRIP_SECONDS):
                await response.write(b".")
                await asyncio.sleep(1)
        return response

    async def answer(request: web.Request) -> web.Response:
        received.setdefault((await request.json())["data"]["n"], time.perf_counter())
        return web.Response(text="seen")

    application = web.Application()
    handlers: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {"/drip": drip, "/well": answer}
    for path, handler in handlers.items():
        application.router.add_post(path, handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield [f"http://127.0.0.1:{port}{path}" for path in handlers], received
    finally:
        await runner.cleanup()


MEASURES = (
    measure_redis_flushed,
    measure_redis_killed,
    measure_redis_stopped,
    measure_postgres_stopped,
    measure_dripping_receiver,
)

if __name__ == "__main__":
    uvloop.run(run(MEASURES))
