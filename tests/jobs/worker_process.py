"""`python -m tests.jobs.worker_process`: a worker as a process of its own, with kinds that leave a trace in Postgres.

`effects` gets one row for each effect that was kept, `starts` one for each start of a handler.
"""

import asyncio
import os
from typing import Any

from app.kernel.observability.telemetry import get_logger
from app.kernel.queue import JobArgs, JobContext, JobKind, job
from app.settings import load_settings
from app.worker import run

TRACES = """
CREATE TABLE effects (job_id uuid, pid integer, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE starts (job_id uuid, pid integer, at timestamptz DEFAULT clock_timestamp());
"""


class Sleep(JobArgs):
    seconds: float = 0.0


async def _begin(ctx: JobContext) -> None:
    async with ctx.db.statement("test.start") as tx:
        await tx.execute("INSERT INTO starts (job_id, pid) VALUES ($1, $2)", ctx.job_id, os.getpid())


@job("test.sleep", args=Sleep, backoff_base=0.1, backoff_cap=0.5)
async def sleep(ctx: JobContext, args: Sleep) -> None:
    """An effect that is committed together with the job's end."""
    await _begin(ctx)
    await asyncio.sleep(args.seconds)
    async with ctx.transaction("test.effect") as tx:
        await tx.execute("INSERT INTO effects (job_id, pid) VALUES ($1, $2)", ctx.job_id, os.getpid())
        await ctx.complete(tx, {"pid": os.getpid()})


@job("test.result", args=Sleep, backoff_base=0.1, backoff_cap=0.5)
async def result(ctx: JobContext, args: Sleep) -> dict[str, Any]:
    await _begin(ctx)
    await asyncio.sleep(args.seconds)
    return {"pid": os.getpid()}


@job("test.noop", args=Sleep)
async def noop(_: JobContext, args: Sleep) -> None:
    if args.seconds:
        await asyncio.sleep(args.seconds)


@job("test.logged", args=Sleep)
async def logged(_: JobContext, __: Sleep) -> None:
    get_logger("tests").info("test.said", word="hello")


KINDS: dict[str, JobKind[Any]] = {kind.name: kind for kind in (sleep, result, noop, logged)}

if __name__ == "__main__":
    asyncio.run(run(load_settings(), KINDS))
