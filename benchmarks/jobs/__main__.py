"""`python -m benchmarks.jobs`: how fast jobs start and end (budget P9), on servers of its own with fsync on.

Prints one line a measure, with a verdict; `python -m benchmarks.jobs NAME …` runs some of them. Commit → start is taken
from before the INSERT was sent to the first line of the handler, so it is an upper bound.
"""

import asyncio
import statistics
import time
from datetime import UTC, datetime
from uuid import uuid4

import orjson
import psutil
import uvloop

from app.jobs.records.invoices import Invoice
from app.jobs.service.invoicing import render_invoice
from app.kernel.ids import UserId
from benchmarks.jobs.bench import Bench, cpu_seconds, run

_LEFT = "SELECT count(*) FROM jobs.jobs WHERE user_id = $1 AND state < 2"
_EVENTS = """
INSERT INTO users.events (user_id, id, kind, occurred_at, properties, created_at)
SELECT $1::uuid, gen_random_uuid(), 'page.viewed', now() - n * interval '1 s',
       jsonb_build_object('n', n, 'path', '/a/b'), now() - n * interval '1 s'
FROM generate_series(1, $2::integer) AS n
"""


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
    figures = f"p50 {p50:.1f} ms   p95 {p95:.1f} ms   p99 {p99:.1f} ms"
    bench.tell("commit -> start", figures, ok=p50 < 10 and p99 < 25)


async def measure_enqueue(bench: Bench, count: int = 500) -> None:
    """One enqueue at a time, with its INSERT and its round trip to Redis."""
    await bench.clear()
    times = []
    calls = bench.resources.redis.calls
    for _ in range(count):
        began = time.perf_counter()
        async with bench.resources.db.statement("bench.enqueue") as tx:
            await bench.resources.queue.enqueue(tx, "bench.noop", {}, user_id=None, queue="none")
        times.append((time.perf_counter() - began) * 1000)
    p50, p99 = statistics.median(times), sorted(times)[int(count * 0.99)]
    calls = bench.resources.redis.calls - calls
    figures = f"p50 {p50:.2f} ms   p99 {p99:.2f} ms   {calls / count:.0f} round trip to Redis"
    bench.tell("enqueue", figures, ok=calls <= count)


async def measure_throughput(bench: Bench, count: int = 8000) -> None:
    """Tracked no-op jobs that one worker takes from a full queue."""
    await bench.clear()
    async with bench.workers(1):
        began = time.perf_counter()
        filling = asyncio.create_task(bench.put("bench.noop", count))
        await bench.finished(count)
        await filling
        rate = count / (time.perf_counter() - began)
    bench.tell("no-op jobs, 1 worker", f"{rate:.0f} jobs/s", ok=rate >= 1000)


async def measure_scaling(bench: Bench, count: int = 12_000) -> None:
    """Jobs of 10 ms with ten slots a process, by one worker and by eight."""
    rates, costs = [], []
    for processes in (1, 8):
        await bench.clear()
        # Twelve of the slots are kept for the other queues.
        async with bench.workers(processes, APP_JOBS_SLOTS="22") as workers:
            pids = [worker.pid for worker in workers]
            spent = cpu_seconds(pids)
            began = time.perf_counter()
            filling = asyncio.create_task(bench.put("bench.sleep", count, seconds=0.01))
            await bench.finished(count)
            await filling
            rates.append(count / (time.perf_counter() - began))
            costs.append((cpu_seconds(pids) - spent) / count * 1e6)
    factor = rates[1] / rates[0]
    figures = f"{rates[0]:.0f} and {rates[1]:.0f} jobs/s = {factor:.1f} x"
    computing = f"{costs[0]:.0f} and {costs[1]:.0f} us of the workers' CPU a job"
    bench.tell("10 ms jobs, 1 and 8 workers", f"{figures}   {computing}", ok=factor >= 3)


async def measure_idle(bench: Bench, seconds: float = 10.0) -> None:
    """CPU of a worker with nothing to do."""
    await bench.clear()
    async with bench.workers(1) as (worker,):
        await asyncio.sleep(2)
        before = cpu_seconds([worker.pid])
        await asyncio.sleep(seconds)
        share = (cpu_seconds([worker.pid]) - before) / seconds * 100
    bench.tell("idle worker", f"{share:.2f} % CPU", ok=share < 1)


async def measure_priority(bench: Bench, count: int = 10_000) -> None:
    """A critical job behind a full bulk queue."""
    await bench.clear()
    async with bench.workers(1):
        await bench.put("bench.sleep", count, seconds=0.05, queue="bulk")
        await asyncio.sleep(1)
        waits = []
        for _ in range(20):
            began = time.time()
            async with bench.resources.db.statement("bench.enqueue") as tx:
                job_id = await bench.resources.queue.enqueue(tx, "bench.stamp", {}, user_id=None, queue="critical")
            at = None
            while at is None:
                await asyncio.sleep(0.01)
                at = await bench.connection.fetchval(
                    "SELECT (result->>'at')::float8 FROM jobs.jobs WHERE id = $1", job_id
                )
            waits.append((at - began) * 1000)
    figures = f"p50 {statistics.median(waits):.1f} ms   max {max(waits):.1f} ms"
    bench.tell(f"critical behind {count} bulk", figures, ok=max(waits) < 100)


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
    figures = f"alone {spent[0]:.0f} ms   behind {count} of A {spent[1]:.0f} ms"
    bench.tell("10 jobs of B", figures, ok=spent[1] <= 2 * spent[0])


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
                "export.events", {"format": "csv"}, user_id=user_id, queue="bulk", timeout_s=900
            )
        ]
        async with bench.resources.db.statement("bench.enqueue") as tx:
            await bench.resources.queue.enqueue_rows(tx, rows)
        while not await bench.connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE state >= 2"):
            highest = max(highest, process.memory_info().rss)
            await asyncio.sleep(0.02)
        spent = time.perf_counter() - began
    assert await bench.connection.fetchval("SELECT state FROM jobs.jobs") == 2
    growth = (highest - before) / 2**20
    bench.tell(f"{count} events to CSV", f"{spent:.1f} s   memory +{growth:.0f} MB", ok=spent <= 5 and growth <= 64)


async def measure_invoice(bench: Bench, count: int = 100) -> None:
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
    p50 = statistics.median(times)
    bench.tell("invoice PDF of one page", f"p50 {p50:.1f} ms   first {times[0]:.0f} ms", ok=p50 < 50)


MEASURES = (
    measure_enqueue,
    measure_pickup,
    measure_throughput,
    measure_scaling,
    measure_idle,
    measure_priority,
    measure_fairness,
    measure_export,
    measure_invoice,
)

if __name__ == "__main__":
    uvloop.run(run(MEASURES))
