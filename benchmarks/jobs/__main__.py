"""`python -m benchmarks.jobs`: how fast jobs start and end (budget P9), on servers of its own with fsync on.

Prints one line a measure. Commit → start is taken from before the INSERT was sent to the first line of the handler, so
it is an upper bound. Figures belong to the machine.
"""

import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import asyncpg
import orjson
import psutil
import uvloop

from app.composition import close_resources, make_resources, open_resources
from app.jobs.records.invoices import Invoice
from app.jobs.service.invoicing import render_invoice
from app.kernel import migrations
from app.kernel.embedded import servers
from app.kernel.ids import UserId
from app.kernel.resources import Resources
from app.settings import load_settings
from benchmarks.jobs.faults import measure_dripping_receiver, measure_postgres_stopped, measure_redis_stopped

_LEFT = "SELECT count(*) FROM jobs.jobs WHERE user_id = $1 AND state < 2"
_EVENTS = """
INSERT INTO users.events (user_id, id, kind, occurred_at, properties, created_at)
SELECT $1::uuid, gen_random_uuid(), 'page.viewed', now() - n * interval '1 s',
       jsonb_build_object('n', n, 'path', '/a/b'), now() - n * interval '1 s'
FROM generate_series(1, $2::integer) AS n
"""


@dataclass
class Bench:
    """Servers, a producer and as many workers as asked for."""

    environment: dict[str, str]
    resources: Resources
    connection: "asyncpg.Connection[asyncpg.Record]"

    async def put(
        self,
        kind: str,
        count: int,
        *,
        seconds: float = 0.0,
        batch: int = 500,
        lane: str = "default",
        user_id: UserId | None = None,
    ) -> None:
        for start in range(0, count, batch):
            rows = [
                self.resources.queue.new_job(kind, {"seconds": seconds}, user_id=user_id, lane=lane)
                for _ in range(min(batch, count - start))
            ]
            async with self.resources.db.statement("bench.enqueue") as tx:
                await self.resources.queue.enqueue_rows(tx, rows)

    async def clear(self) -> None:
        await self.connection.execute("TRUNCATE jobs.jobs CASCADE")
        await self.resources.redis.client.flushdb()

    async def finished(self, count: int) -> None:
        while await self.connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE state = 2") < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    @asynccontextmanager
    async def workers(self, count: int) -> AsyncIterator[list[asyncio.subprocess.Process]]:
        processes = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.jobs.worker"),
                env=self.environment,
                stdout=asyncio.subprocess.PIPE,
            )
            for _ in range(count)
        ]
        for process in processes:
            assert process.stdout is not None
            while b"worker_ready" not in await process.stdout.readline():
                assert process.returncode is None
        readers = [asyncio.create_task(process.stdout.read()) for process in processes if process.stdout is not None]
        await asyncio.sleep(1.5)
        try:
            yield processes
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                await process.wait()
            await asyncio.gather(*readers)


async def measure_pickup(bench: Bench, count: int = 400) -> None:
    """Commit → handler start, one job every 20 ms."""
    await bench.clear()
    sent: dict[str, float] = {}
    async with bench.workers(1):
        for _ in range(count):
            began = time.time()
            async with bench.resources.db.statement("bench.enqueue") as tx:
                job_id = await bench.resources.queue.enqueue(tx, "bench.stamp", {}, user_id=None)
            sent[str(job_id)] = began
            await asyncio.sleep(0.02)
        await bench.finished(count)
    rows = await bench.connection.fetch("SELECT id::text, (result->>'at')::float8 AS at FROM jobs.jobs")
    waits = sorted((row["at"] - sent[row["id"]]) * 1000 for row in rows)
    p50, p95, p99 = (waits[int(len(waits) * q)] for q in (0.5, 0.95, 0.99))
    print(f"commit -> start           p50 {p50:.1f} ms   p95 {p95:.1f} ms   p99 {p99:.1f} ms")


async def measure_enqueue(bench: Bench, count: int = 500) -> None:
    """One enqueue at a time, with its INSERT and its round trip to Redis."""
    await bench.clear()
    times = []
    for _ in range(count):
        began = time.perf_counter()
        async with bench.resources.db.statement("bench.enqueue") as tx:
            await bench.resources.queue.enqueue(tx, "bench.noop", {}, user_id=None, lane="none")
        times.append((time.perf_counter() - began) * 1000)
    p50, p99 = statistics.median(times), sorted(times)[int(count * 0.99)]
    print(f"enqueue                   p50 {p50:.2f} ms   p99 {p99:.2f} ms")


async def measure_throughput(bench: Bench, count: int = 8000) -> None:
    """Tracked no-op jobs that one worker takes from a full queue."""
    await bench.clear()
    async with bench.workers(1):
        began = time.perf_counter()
        filling = asyncio.create_task(bench.put("bench.noop", count))
        await bench.finished(count)
        await filling
        print(f"no-op jobs, 1 worker      {count / (time.perf_counter() - began):.0f} jobs/s")


async def measure_scaling(bench: Bench, count: int = 12_000) -> None:
    """Jobs of 10 ms with ten slots a process, by one worker and by eight."""
    bench.environment["APP_JOBS_SLOTS"] = "22"
    rates = []
    for processes in (1, 8):
        await bench.clear()
        async with bench.workers(processes):
            began = time.perf_counter()
            filling = asyncio.create_task(bench.put("bench.sleep", count, seconds=0.01))
            await bench.finished(count)
            await filling
            rates.append(count / (time.perf_counter() - began))
    del bench.environment["APP_JOBS_SLOTS"]
    print(f"10 ms jobs, 1 and 8       {rates[0]:.0f} and {rates[1]:.0f} jobs/s = {rates[1] / rates[0]:.1f} x")


async def measure_idle(bench: Bench, seconds: float = 10.0) -> None:
    """CPU of a worker with nothing to do."""
    await bench.clear()
    async with bench.workers(1) as (worker,):
        await asyncio.sleep(2)
        process = psutil.Process(worker.pid)
        before = sum(process.cpu_times()[:2])
        await asyncio.sleep(seconds)
        print(f"idle worker               {(sum(process.cpu_times()[:2]) - before) / seconds * 100:.2f} % CPU")


async def measure_flush(bench: Bench, count: int = 5000) -> None:
    """Redis emptied with jobs in it: until all of them are done, and how many were lost or done twice."""
    await bench.clear()
    await bench.put("bench.sleep", count, seconds=0.05)
    async with bench.workers(1):
        await bench.resources.redis.client.flushall()
        began = time.perf_counter()
        await bench.finished(count)
        spent = time.perf_counter() - began
    twice = await bench.connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE attempt <> 1")
    print(f"FLUSHALL with {count} queued  all done after {spent:.1f} s, {twice} more than once")


async def measure_priority(bench: Bench, count: int = 10_000) -> None:
    """A critical job behind a full bulk lane."""
    await bench.clear()
    async with bench.workers(1):
        await bench.put("bench.sleep", count, seconds=0.05, lane="bulk")
        await asyncio.sleep(1)
        waits = []
        for _ in range(20):
            began = time.time()
            async with bench.resources.db.statement("bench.enqueue") as tx:
                job_id = await bench.resources.queue.enqueue(tx, "bench.stamp", {}, user_id=None, lane="critical")
            at = None
            while at is None:
                await asyncio.sleep(0.01)
                at = await bench.connection.fetchval(
                    "SELECT (result->>'at')::float8 FROM jobs.jobs WHERE id = $1", job_id
                )
            waits.append((at - began) * 1000)
    print(f"critical behind {count} bulk  p50 {statistics.median(waits):.1f} ms   max {max(waits):.1f} ms")


async def measure_fairness(bench: Bench, count: int = 5000) -> None:
    """Ten jobs of B, alone and behind five thousand of A."""
    spent = []
    for before in (0, count):
        await bench.clear()
        async with bench.workers(1):
            busy, quiet = UserId(uuid4()), UserId(uuid4())
            await bench.put("bench.sleep", before, seconds=0.05, user_id=busy)
            began = time.perf_counter()
            await bench.put("bench.sleep", 10, seconds=0.05, user_id=quiet)
            while await bench.connection.fetchval(_LEFT, quiet):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            spent.append((time.perf_counter() - began) * 1000)
    print(f"10 jobs of B              alone {spent[0]:.0f} ms   behind {count} of A {spent[1]:.0f} ms")


async def measure_export(bench: Bench, count: int = 1_000_000) -> None:
    """A million events to a CSV file, and what that adds to the worker's memory."""
    await bench.clear()
    user_id = UserId(uuid4())
    await bench.connection.execute(_EVENTS, user_id, count, timeout=300)
    async with bench.workers(1) as (worker,):
        process = psutil.Process(worker.pid)
        before = highest = process.memory_info().rss
        began = time.perf_counter()
        rows = [
            bench.resources.queue.new_job(
                "export.events", {"format": "csv"}, user_id=user_id, lane="bulk", timeout_s=900
            )
        ]
        async with bench.resources.db.statement("bench.enqueue") as tx:
            await bench.resources.queue.enqueue_rows(tx, rows)
        while not await bench.connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE state >= 2"):
            highest = max(highest, process.memory_info().rss)
            await asyncio.sleep(0.02)
        spent = time.perf_counter() - began
    assert await bench.connection.fetchval("SELECT state FROM jobs.jobs") == 2
    print(f"{count} events to CSV    {spent:.1f} s   memory +{(highest - before) / 2**20:.0f} MB")


async def measure_invoice(_: Bench, count: int = 100) -> None:
    """An invoice of one page, twenty lines."""
    lines = [{"description": f"Item {n}", "quantity": n + 1, "unit_price_minor": 1999} for n in range(20)]
    customer = {"name": "Ada Lovelace", "email": "ada@example.org", "address": "London"}
    times = []
    for number in range(count):
        invoice = Invoice(
            id=uuid4(),
            user_id=UserId(uuid4()),
            number=f"N-{number}",
            order_id="O-1",
            customer=orjson.dumps(customer).decode(),
            currency="EUR",
            lines=orjson.dumps(lines).decode(),
            tax_rate_percent="19",
            notes=None,
            subtotal_minor=419790,
            tax_minor=79760,
            total_minor=499550,
            status="pending",
            job_id=uuid4(),
            created_at=datetime.now(UTC),
        )
        began = time.perf_counter()
        render_invoice(invoice)
        times.append((time.perf_counter() - began) * 1000)
    print(f"invoice PDF               p50 {statistics.median(times):.1f} ms   first {times[0]:.0f} ms")


async def main() -> None:
    wanted = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory, servers(Path(directory)) as running:
        if running.database_url is None or running.redis_url is None:
            raise SystemExit("both servers are needed")
        await migrations.upgrade(running.database_url)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("APP_", "DATABASE_", "REDIS_"))
        } | {
            "DATABASE_URL": running.database_url,
            "REDIS_URL": running.redis_url,
            "APP_DATA_DIR": directory,
            "APP_LOG_FORMAT": "json",
        }
        resources = make_resources(load_settings(environment), application_name="bench")
        await open_resources(resources)
        connection = await asyncpg.connect(running.database_url)
        bench = Bench(environment, resources, connection)
        for measure in (
            measure_enqueue,
            measure_pickup,
            measure_throughput,
            measure_scaling,
            measure_idle,
            measure_flush,
            measure_priority,
            measure_fairness,
            measure_export,
            measure_invoice,
            measure_redis_stopped,
            measure_postgres_stopped,
            measure_dripping_receiver,
        ):
            if not wanted or measure.__name__.removeprefix("measure_") in wanted:
                await measure(bench)
        await bench.connection.close()
        await close_resources(resources)


if __name__ == "__main__":
    uvloop.run(main())
