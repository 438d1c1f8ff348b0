"""What an outage costs, at full size: a server that is stopped under load, and a receiver of webhooks that drips."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
from aiohttp import web

from app.jobs.service.endpoints import create_endpoint
from app.jobs.service.publishing import publish_event
from app.jobs.service.sending import WebhookSender
from app.jobs.settings import JobsSettings
from app.kernel.embedded import EmbeddedPostgres, EmbeddedValkey
from app.kernel.errors import AppError
from app.kernel.ids import UserId, new_id

if TYPE_CHECKING:
    from benchmarks.jobs.__main__ import Bench

_EFFECTS = "CREATE TABLE IF NOT EXISTS effects (job_id uuid NOT NULL)"
_PER_SECOND = 100
_LOCAL = {"APP_JOBS_WEBHOOK_ALLOW": "127.0.0.1/32", "APP_JOBS_WEBHOOK_HTTP": "true"}
_DRIP_SECONDS = 60


async def measure_redis_stopped(bench: "Bench", seconds: float = 30) -> None:
    """Redis away under load, and back empty."""
    server = EmbeddedValkey(Path(bench.environment["APP_DATA_DIR"]) / "valkey")
    await _outage(bench, "Redis", server.stop, server.start, seconds)


async def measure_postgres_stopped(bench: "Bench", seconds: float = 15) -> None:
    """Postgres away under load; what could not be enqueued then was refused, and is not counted as lost."""
    server = EmbeddedPostgres(Path(bench.environment["APP_DATA_DIR"]) / "postgres")
    await _outage(bench, "Postgres", server.stop, server.start, seconds)


async def _outage(
    bench: "Bench", name: str, stop: Callable[[], None], start: Callable[[], None], seconds: float
) -> None:
    await bench.clear()
    await bench.connection.execute(_EFFECTS)
    await bench.connection.execute("TRUNCATE effects")
    accepted: list[float] = []
    refused = 0

    async def load() -> None:
        nonlocal refused
        while True:
            began = time.perf_counter()
            try:
                async with bench.resources.db.statement("bench.enqueue") as tx:
                    await bench.resources.queue.enqueue(tx, "bench.effect", {"seconds": 0.05}, user_id=None)
                accepted.append(time.perf_counter() - began)
            except AppError:
                refused += 1
            await asyncio.sleep(1 / _PER_SECOND)

    async with bench.workers(2) as workers:
        loading = asyncio.create_task(load())
        await asyncio.sleep(4)
        await asyncio.to_thread(stop)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(start)
        back = time.perf_counter()
        bench.connection = await asyncpg.connect(bench.environment["DATABASE_URL"])
        await asyncio.sleep(4)
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        async with asyncio.timeout(60):
            while await bench.connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE state < 2"):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        spent = time.perf_counter() - back
        lost_workers = sum(worker.returncode is not None for worker in workers)
    rows = await bench.connection.fetchrow(
        """
        SELECT count(*) AS jobs, count(*) FILTER (WHERE j.state = 2) AS succeeded,
               count(*) FILTER (WHERE e.count IS NULL) AS lost, count(*) FILTER (WHERE e.count > 1) AS doubled,
               count(*) FILTER (WHERE j.error IS NOT NULL) AS with_errors
        FROM jobs.jobs AS j
        LEFT JOIN (SELECT job_id, count(*) FROM effects GROUP BY job_id) AS e ON e.job_id = j.id
        """
    )
    assert rows is not None
    print(
        f"{name} stopped for {seconds:.0f} s at {_PER_SECOND} jobs/s   {len(accepted)} accepted ({refused} refused), "
        f"{rows['succeeded']} of {rows['jobs']} succeeded, {rows['lost']} lost, {rows['doubled']} doubled, "
        f"{rows['with_errors']} with an error, {lost_workers} workers lost, "
        f"slowest enqueue {max(accepted) * 1000:.0f} ms, all done {max(0.0, spent - 4):.1f} s after the load ended"
    )


async def measure_dripping_receiver(bench: "Bench", seconds: float = 30) -> None:
    """Deliveries to a receiver that is well, beside one that takes sixty seconds for an answer, byte by byte."""
    await bench.clear()
    settings = JobsSettings(webhook_http=True, webhook_allow=("127.0.0.1/32",))
    sender = WebhookSender(settings)
    resources, sent = bench.resources, dict[int, float]()
    async with _receivers() as (urls, received):
        user_id = UserId(uuid4())
        for url in urls:
            await create_endpoint(
                resources.db,
                sender,
                resources.keys,
                resources.clock,
                resources.listeners,
                user_id,
                url=url,
                event_types=["user.updated"],
                description=None,
            )
        bench.environment.update(_LOCAL)
        async with bench.workers(1):
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
        for name in _LOCAL:
            del bench.environment[name]
    await sender.close()
    waits = sorted((received[number] - sent[number]) * 1000 for number in received)
    p50, p95 = (waits[int(len(waits) * q)] for q in (0.5, 0.95))
    print(
        f"beside a receiver that drips for {_DRIP_SECONDS} s   {len(received)} of {len(sent)} delivered, "
        f"p50 {p50:.0f} ms   p95 {p95:.0f} ms   max {waits[-1]:.0f} ms"
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
