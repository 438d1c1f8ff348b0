"""`python -m benchmarks.jobs.worker`: a worker with kinds that do almost nothing."""

import asyncio
import time
from typing import Any

import uvloop

from app.jobs.api import JOB_KINDS
from app.kernel.queue import JobArgs, JobContext, JobKind, job
from app.settings import load_settings
from app.worker import run


class Sleep(JobArgs):
    seconds: float = 0.0


@job("bench.noop", args=Sleep)
async def noop(_: JobContext, __: Sleep) -> None:
    """Nothing but being claimed and finished."""


@job("bench.stamp", args=Sleep)
async def stamp(_: JobContext, __: Sleep) -> dict[str, Any]:
    """Tells when the handler started."""
    return {"at": time.time()}


@job("bench.sleep", args=Sleep)
async def sleep(_: JobContext, args: Sleep) -> None:
    await asyncio.sleep(args.seconds)


@job("bench.effect", args=Sleep)
async def effect(ctx: JobContext, args: Sleep) -> None:
    """Leaves a row in `effects` for each time that it was done, in one commit with its end."""
    await asyncio.sleep(args.seconds)
    async with ctx.transaction("bench.effect") as tx:
        await tx.execute("INSERT INTO effects (job_id) VALUES ($1)", ctx.job_id)
        await ctx.complete(tx)


KINDS: dict[str, JobKind[Any]] = {kind.name: kind for kind in (noop, stamp, sleep, effect)}

if __name__ == "__main__":
    uvloop.run(run(load_settings(), {**JOB_KINDS, **KINDS}))
